"""A schedule in the manifest: there and back, and what is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtu_export.bundle.manifest import ScheduleRecord
from mtu_export.bundle.reading import validated
from mtu_export.spec import (
    BundleError,
    Pass,
    Schedule,
)

NUMBERS = st.floats(-1e9, 1e9, allow_nan=False)
POSITIVE = st.floats(1e-9, 1e9)
FOURS = st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
PASSES = st.lists(
    st.builds(Pass, timestep=NUMBERS, input_scale=POSITIVE, x=FOURS, m=FOURS),
    min_size=1,
    max_size=6,
)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    passes = []
    for index, coefficients in enumerate(draw(PASSES)):
        keep = [float(k <= index) for k in range(4)]
        x = tuple(a * b for a, b in zip(coefficients.x, keep, strict=True))
        m = tuple(a * b for a, b in zip(coefficients.m, keep, strict=True))
        passes.append(
            Pass(timestep=coefficients.timestep, input_scale=coefficients.input_scale, x=x, m=m)
        )
    return Schedule(start_noise=draw(POSITIVE), passes=tuple(passes))


BAD = st.sampled_from(
    [None, True, "1", [], {}, [1.0], float("nan"), float("inf"), -float("inf"), 1e300, 10**400]
)


def read(record: Any) -> Schedule:
    return validated(ScheduleRecord, json.dumps(record)).schedule()


@given(schedule=schedules())
def test_json_round_trip(schedule: Schedule) -> None:
    assert read(schedule.to_json()) == schedule


@given(schedule=schedules())
def test_json_of_a_newer_minor_schema_is_read(schedule: Schedule) -> None:
    record = schedule.to_json()
    record["colour"] = "blue"
    record["passes"][0]["noise"] = [1, 2]
    assert read(record) == schedule


@settings(max_examples=300)
@given(schedule=schedules(), bad=BAD, data=st.data())
def test_a_mutation_is_a_bundle_error(schedule: Schedule, bad: Any, data: st.DataObject) -> None:
    """Any one value replaced by one of the wrong kind, or taken away, or one too many."""
    record = schedule.to_json()
    one = data.draw(st.sampled_from(record["passes"]))
    places: list[tuple[Any, Any]] = [(record, key) for key in record] + [(one, key) for key in one]
    places += [(one[key], k) for key in ("x", "m") for k in range(4)]
    parent, key = data.draw(st.sampled_from(places))
    how = data.draw(st.sampled_from(["replace", "take", "add"]))
    if how == "replace":
        parent[key] = bad
    elif how == "take":
        del parent[key]
    else:
        one[data.draw(st.sampled_from(["x", "m"]))].append(0.0)
    with pytest.raises(BundleError, match=r"^manifest.json: ") as caught:
        read(record)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("document", [None, [], "x", 3, {"passes": []}, {"init_noise_sigma": 1}])
def test_no_schedule_is_a_bundle_error(document: Any) -> None:
    with pytest.raises(BundleError):
        read(document)


def test_absurd_sizes_are_refused() -> None:
    one = {"timestep": 1, "input_scale": 1, "x": [1, 0, 0, 0], "m": [1, 0, 0, 0]}
    good = {"init_noise_sigma": 1, "passes": [one] * 10_000}
    assert len(read(good).passes) == 10_000
    for passes, message in (([], "at least 1 item"), ([one] * 10_001, "at most 10,000 items")):
        with pytest.raises(BundleError, match=message):
            read({**good, "passes": passes})


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_pass_cannot_look_back_before_the_start(index: int) -> None:
    plain = {"timestep": 1, "input_scale": 1, "x": [1, 0, 0, 0], "m": [1, 0, 0, 0]}
    passes = [copy.deepcopy(plain) for _ in range(4)]
    passes[index]["m"][index + 1] = 1e-3
    with pytest.raises(BundleError, match=rf"passes\[{index}\] looks back"):
        read({"init_noise_sigma": 1, "passes": passes})
