"""A schedule in the manifest: there and back, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
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
FEATURES = st.dictionaries(
    st.sampled_from(["guidance", "angles", "a_1"]),
    st.one_of(NUMBERS, st.lists(NUMBERS, min_size=1, max_size=3).map(tuple)),
    max_size=2,
)
PASSES = st.lists(
    st.builds(
        Pass,
        timestep=NUMBERS,
        input_scale=POSITIVE,
        x=FOURS,
        m=FOURS,
        noise=NUMBERS,
        features=FEATURES,
    ),
    min_size=1,
    max_size=6,
)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    passes = []
    for index, step in enumerate(draw(PASSES)):
        keep = [float(k <= index) for k in range(4)]
        x = tuple(a * b for a, b in zip(step.x, keep, strict=True))
        m = tuple(a * b for a, b in zip(step.m, keep, strict=True))
        passes.append(replace(step, x=x, m=m))
    strength = draw(st.one_of(st.none(), st.floats(0.01, 1)))
    return Schedule(
        start_noise=draw(POSITIVE),
        start_picture=0.0 if strength is None else draw(NUMBERS),
        strength=strength,
        passes=tuple(passes),
    )


BAD = st.sampled_from(
    [None, True, "1", [], {}, [1.0], float("nan"), float("inf"), -float("inf"), 1e300, 10**400]
)


def read(record: Any) -> Schedule:
    return validated(ScheduleRecord, json.dumps(record)).schedule()


def written(schedule: Schedule, steps: int = 4) -> Any:
    return ScheduleRecord.of(steps, schedule).to_json()


@given(schedule=schedules())
def test_json_round_trip(schedule: Schedule) -> None:
    assert read(written(schedule)) == schedule


@given(schedule=schedules())
def test_json_of_a_newer_minor_schema_is_read(schedule: Schedule) -> None:
    record = written(schedule)
    record["colour"] = "blue"
    record["passes"][0]["weather"] = [1, 2]
    record["start"]["seed"] = 7
    assert read(record) == schedule


@settings(max_examples=300)
@given(schedule=schedules(), bad=BAD, data=st.data())
def test_a_mutation_is_a_bundle_error(schedule: Schedule, bad: Any, data: st.DataObject) -> None:
    """Any one value replaced by one of the wrong kind, or taken away, or one too many."""
    record = written(schedule)
    record.pop("strength", None)  # may be missing; what it may be is tested below
    if record["start"]["picture"]:
        record["start"]["picture"] = 0.0
    one = data.draw(st.sampled_from(record["passes"]))
    places: list[tuple[Any, Any]] = [(record, key) for key in record] + [(one, key) for key in one]
    places += [(one[key], k) for key in ("x", "m") for k in range(4)]
    places += [(record["start"], "noise"), (record["start"], "picture")]
    places.append((one["columns"], "timestep"))
    parent, key = data.draw(st.sampled_from(places))
    how = data.draw(st.sampled_from(["replace", "take", "add"]))
    if how == "replace":
        parent[key] = bad
    elif how == "take":
        del parent[key]
    else:
        one[data.draw(st.sampled_from(["x", "m"]))].append(0.0)
    with pytest.raises(BundleError) as caught:
        read(record)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


ONE = {
    "columns": {"timestep": 1},
    "input_scale": 1,
    "x": [1, 0, 0, 0],
    "m": [1, 0, 0, 0],
    "noise": 0,
}
GOOD = {"steps": 1, "start": {"noise": 1, "picture": 0}, "passes": [ONE]}


@pytest.mark.parametrize("document", [None, [], "x", 3, {"passes": []}, {"start": {"noise": 1}}])
def test_no_schedule_is_a_bundle_error(document: Any) -> None:
    with pytest.raises(BundleError):
        read(document)


def test_absurd_sizes_are_refused() -> None:
    assert len(read({**GOOD, "passes": [ONE] * 10_000}).passes) == 10_000
    for passes, message in (([], "at least 1 item"), ([ONE] * 10_001, "at most 10,000 items")):
        with pytest.raises(BundleError, match=message):
            read({**GOOD, "passes": passes})
    many = {f"c{i}": 1 for i in range(17)}
    for columns, message in ((many, "at most 16"), ({"a": [1] * 4097}, "must be a number")):
        with pytest.raises(BundleError, match=message):
            read({**GOOD, "passes": [{**ONE, "columns": columns}]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strength": 0}, "strength: must be greater than 0"),
        ({"strength": 1.01}, "strength: must be at most 1"),
        ({"start": {"noise": 1, "picture": 0.5}}, "start_picture needs a strength"),
        ({"start": {"noise": -1, "picture": 0}}, "noise: must be greater than 0"),
        ({"passes": [{**ONE, "columns": {}}]}, "a pass has no column 'timestep'"),
        ({"passes": [{**ONE, "columns": {"timestep": [1.0]}}]}, "column 'timestep' is no number"),
    ],
)
def test_starts_and_timesteps_that_are_refused(change: Any, message: str) -> None:
    assert read(GOOD).draws == 0
    with pytest.raises(BundleError, match=message):
        read({**GOOD, **change})


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_pass_cannot_look_back_before_the_start(index: int) -> None:
    passes = [copy.deepcopy(ONE) for _ in range(4)]
    passes[index]["m"][index + 1] = 1e-3
    with pytest.raises(BundleError, match=rf"passes\[{index}\] looks back"):
        read({**GOOD, "passes": passes})


def test_where_one_pass_draws_noise_is_given_for_all() -> None:
    passes = [ONE, {**ONE, "noise": -0.5}, ONE]
    assert read({**GOOD, "passes": passes}).draws == 3
