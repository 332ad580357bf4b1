"""The verdict between two records: what noise does not show, and what a slower runner does."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtu_export.bench import comparison, record
from mtu_export.bench.comparison import Outcome, compare
from mtu_export.bench.record import Check, Measurement, Run
from mtu_export.cli import app
from mtu_export.spec import PlanError
from tests.bench.records import (
    device,
    host_drift,
    measured,
    noisy,
    peak,
    rounds_of,
    run,
    unmeasured,
)

PAIRS = 200
STILL = rounds_of([1.0, 1.01, 0.99], [1.0, 1.0, 1.01], [0.99, 1.0, 1.0])


def busy_host(
    generator: np.random.Generator, *, slower: float = 1.0, host: float = 1.0, rounds: int = 5
) -> Run:
    """A run of two parts and the control on a noisy host that is ``host`` times as slow."""
    drift = host_drift(generator, rounds) + np.log(host)
    control = 0.1 * np.exp(drift + generator.normal(0, 0.005, rounds))
    parts = [
        measured(noisy(generator, seconds * slower, rounds, drift=drift), part=part)
        for part, seconds in (("denoiser", 0.05), ("image", 0.4))
    ]
    return run(*parts, peaks=(peak(control.tolist()),))


@functools.cache
def verdicts(slower: float, rounds: int = 5, host: float = 1.0) -> list[Outcome]:
    outcomes = []
    for seed in range(PAIRS):
        generator = np.random.default_rng(seed)
        before = busy_host(generator, rounds=rounds)
        after = busy_host(generator, slower=slower, host=host, rounds=rounds)
        outcomes.append(compare(before, after))
    return outcomes


def share(outcomes: list[Outcome], *wanted: str) -> float:
    said = [pair.verdict for outcome in outcomes for pair in outcome.pairs]
    return sum(verdict in wanted for verdict in said) / len(said)


@pytest.mark.parametrize("rounds", [3, 5])
def test_the_same_runner_twice_shows_nothing(rounds: int) -> None:
    outcomes = verdicts(1.0, rounds)
    assert share(outcomes, "slower", "faster") <= 0.03
    assert sum(outcome.exit_code == 1 for outcome in outcomes) <= 0.04 * PAIRS


@pytest.mark.parametrize(("rounds", "detected"), [(3, 0.75), (5, 0.95)])
def test_a_runner_that_is_a_tenth_slower_shows(rounds: int, detected: float) -> None:
    outcomes = verdicts(1.1, rounds)
    assert share(outcomes, "slower") >= detected
    assert share(outcomes, "faster") == 0


def test_a_runner_that_is_a_tenth_faster_shows() -> None:
    assert share(verdicts(1 / 1.1), "faster") >= 0.95


def test_a_slower_machine_is_not_a_slower_runner() -> None:
    """The control moved with it: neither a verdict nor silence."""
    outcomes = verdicts(1.0, host=1.3)
    assert share(outcomes, "slower") <= 0.03
    assert share(outcomes, "unclear") >= 0.95
    assert all(outcome.exit_code == 2 for outcome in outcomes if share([outcome], "unclear") == 1)


def test_a_slower_runner_on_a_faster_machine_is_not_passed() -> None:
    outcomes = verdicts(1.3, host=1 / 1.3)
    assert share(outcomes, "no difference") <= 0.05


def test_noise_that_could_hide_a_regression_is_no_success() -> None:
    wild = rounds_of([1.0, 1.0], [1.6, 1.6], [0.8, 0.8])
    outcome = compare(run(measured(wild)), run(measured(wild)))
    (pair,) = outcome.pairs
    assert (pair.verdict, outcome.exit_code) == ("unclear", 2)
    assert pair.reason == "too noisy: more rounds, or a quieter machine"


def test_the_control_is_that_of_the_target() -> None:
    """Records name it by the target; the engine's own name does as well."""
    slow = rounds_of(*([2 * s for s in r.samples_s] for r in STILL))
    for name, verdict in (("onnx", "unclear"), ("onnxruntime", "unclear"), ("other", "slower")):
        before = run(measured(STILL), peaks=(peak([0.1, 0.101, 0.1], name),))
        after = run(measured(slow), peaks=(peak([0.2, 0.202, 0.2], name),))
        assert compare(before, after).pairs[0].verdict == verdict


def test_the_interval_holds_the_true_ratio() -> None:
    outcomes = verdicts(1.1, 5)
    intervals = [pair.latency for outcome in outcomes for pair in outcome.pairs]
    inside = [i is not None and i.low <= 1.1 <= i.high for i in intervals]
    assert sum(inside) / len(inside) >= comparison.LEVEL - 0.03


@pytest.mark.parametrize(
    ("freedom", "level", "expected"),
    [
        (1, 0.975, 12.706),
        (2, 0.9, 1.886),
        (2, 0.99, 6.965),
        (4, 0.975, 2.776),
        (4, 0.995, 4.604),
        (10, 0.99, 2.764),
        (120, 0.975, 1.980),
        (1e9, 0.975, 1.960),
    ],
)
def test_quantiles_are_those_of_tables_of_t(freedom: float, level: float, expected: float) -> None:
    assert comparison.quantile_of_t(level, freedom) == pytest.approx(expected, rel=1e-3)


def test_equal_records_have_the_ratio_one() -> None:
    same = run(measured(STILL))
    outcome = compare(same, same)
    (pair,) = outcome.pairs
    assert (pair.verdict, outcome.exit_code) == ("no difference", 0)
    assert pair.latency is not None
    assert pair.latency.ratio == 1
    assert pair.latency.low < 1 < pair.latency.high


def test_a_sure_difference_below_the_smallest_effect_is_none() -> None:
    later = rounds_of(*([1.04 * s for s in r.samples_s] for r in STILL))
    outcome = compare(run(measured(STILL)), run(measured(later)))
    assert outcome.pairs[0].verdict == "no difference"


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"emulated": True}, "B ran in an emulator, the other did not"),
        ({"model": "another"}, "model is a machine in A and another in B"),
        ({"kind": "web"}, "kind is host in A and web in B"),
        ({"cores": 4}, "cores is 2 in A and 4 in B"),
        ({"libc": "bionic"}, "libc is glibc in A and bionic in B"),
    ],
)
def test_another_device_is_refused(changes: dict[str, Any], message: str) -> None:
    one = run(measured(STILL))
    with pytest.raises(PlanError, match=f"the records cannot be compared: {message}"):
        compare(one, run(measured(STILL), device=device(**changes)))


def test_another_libc_version_is_the_same_device() -> None:
    newer = run(measured(STILL), device=device(libc="glibc 2.41"))
    assert compare(run(measured(STILL)), newer).exit_code == 0


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (measured(STILL, threads=1), "threads: 2 in A, 1 in B"),
        (measured(STILL, mask="1"), "mask of cores: 3 in A, 1 in B"),
        (measured(STILL[:1]), "1 round shows no drift; at least 2 are needed"),
        (measured(STILL, emulated=True), "emulated: its times are no speeds"),
    ],
)
def test_other_conditions_are_marked(after: Measurement, reason: str) -> None:
    outcome = compare(run(measured(STILL)), run(after))
    (pair,) = outcome.pairs
    assert (pair.verdict, pair.reason, outcome.exit_code) == ("not comparable", reason, 2)


def test_pairs_have_the_same_key() -> None:
    a = run(measured(STILL), measured(STILL, part="decoder"))
    b = run(measured(STILL), measured(STILL, bundle={"scheme": "fp32"}))
    said = {(pair.key[2], pair.key[5]): pair.verdict for pair in compare(a, b).pairs}
    assert said == {
        ("int8", "denoiser"): "no difference",
        ("int8", "decoder"): "only in A",
        ("fp32", "denoiser"): "only in B",
    }


def test_bundles_of_one_key_are_told_apart_by_name() -> None:
    slow = rounds_of(*([2 * s for s in r.samples_s] for r in STILL))
    one, other = measured(STILL), measured(slow, bundle={"name": "four-tasks"})
    outcome = compare(run(one, other), run(other, one))
    assert [pair.verdict for pair in outcome.pairs] == ["no difference"] * 2


def test_nothing_in_common_is_no_success() -> None:
    assert compare(run(measured(STILL)), run(measured(STILL, task="edit"))).exit_code == 2
    assert compare(run(), run()).exit_code == 2


# ------------------------------------------------------------------------------- other changes


def test_a_failure_is_a_regression_and_names_its_reason() -> None:
    failure = unmeasured("failed", "killed, most likely out of memory")
    outcome = compare(run(measured(STILL)), run(failure))
    (pair,) = outcome.pairs
    assert (pair.verdict, outcome.exit_code) == ("fails now", 1)
    assert pair.reason == "killed, most likely out of memory"
    (pair,) = compare(run(failure), run(measured(STILL))).pairs
    assert pair.verdict == "runs now"


@pytest.mark.parametrize(
    ("before", "after", "passed", "worse"),
    [
        (61.4, 61.3, True, False),
        (61.4, 55.0, True, True),
        (61.4, 70.0, True, False),
        (125.0, 110.0, True, False),
        (40.1, 39.9, False, True),
    ],
)
def test_decibels(before: float, after: float, passed: bool, worse: bool) -> None:
    checks = [
        (Check(name="out", psnr_db=db, floor_db=40, passed=ok),)
        for db, ok in ((before, True), (after, passed))
    ]
    one, other = (run(measured(STILL, checks=check)) for check in checks)
    outcome = compare(one, other)
    (change,) = outcome.pairs[0].changes
    assert (change.before, change.after, change.worse) == (before, after, worse)
    assert outcome.exit_code == (1 if worse else 0)


def test_bytes_and_memory() -> None:
    one = measured(STILL)
    assert one.work is not None
    assert one.memory is not None
    work = one.work.model_copy(update={"bytes": 4_500_000})
    more = one.memory.run.model_copy(update={"anonymous": 95_000_000})
    memory = one.memory.model_copy(update={"run": more})
    outcome = compare(run(one), run(measured(STILL, work=work, memory=memory)))
    changes = {change.what: change.worse for change in outcome.pairs[0].changes}
    assert changes == {"bytes": True, "anonymous memory": False}
    assert outcome.exit_code == 1


# ----------------------------------------------------------------------------- the command line


def command(tmp_path: Path, capsys: Any, after: Run, *flags: str) -> tuple[int, str]:
    paths = []
    for name, one in (("A", run(measured(STILL))), ("B", after)):
        paths.append(str(tmp_path / f"{name}.json"))
        record.write(one, Path(paths[-1]))
    code = app(["compare", *paths, *flags], standalone_mode=False)
    return code, capsys.readouterr().out


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    slow = rounds_of(*([1.2 * s for s in r.samples_s] for r in STILL))
    code, text = command(tmp_path, capsys, run(measured(slow)))
    assert code == 1
    assert "1.200" in text
    assert text.splitlines()[-1] == "regression: t2i-onnx-int8 bundle t2i/denoiser"
    code, text = command(tmp_path, capsys, run(measured(STILL)))
    assert (code, text.splitlines()[-1]) == (0, "no regression")
    code, text = command(tmp_path, capsys, run(measured(STILL, threads=1)))
    assert (code, text.splitlines()[-1]) == (2, "no verdict on t2i-onnx-int8 bundle t2i/denoiser")


def test_the_command_in_json(tmp_path: Path, capsys: Any) -> None:
    slow = rounds_of(*([1.2 * s for s in r.samples_s] for r in STILL))
    code, text = command(tmp_path, capsys, run(measured(slow)), "--json")
    document = json.loads(text)
    assert code == document["exit"] == 1
    (pair,) = document["pairs"]
    assert pair["verdict"] == "slower"
    assert pair["key"]["part"] == "denoiser"
    assert pair["latency"]["ratio"] == pytest.approx(1.2)
