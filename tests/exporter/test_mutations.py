"""Any mutated input ends as an error of our tree or as a correct export, never as anything else.

`python benchmarks/mutations.py` runs a thousand; its table is `benchmarks/results/mutations.md`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mtu_export import spec
from mtu_export.testing.campaigns import mutations
from tests.support.shared import SharedFolders

ERRORS = [kind for kind in vars(spec).values() if isinstance(kind, type)]
ENDS = {mutations.CORRECT, mutations.VERIFIED} | {
    kind.__name__ for kind in ERRORS if issubclass(kind, spec.MtuExportError)
}
PHASES = (Phase.explicit, Phase.generate)  # an example takes a second: shrinking would take hours


@pytest.fixture(scope="session")
def base(shared_folders: SharedFolders) -> Callable[[str], Path]:
    """A function that gives the valid checkpoint of a name."""

    def make(name: str) -> Path:
        return shared_folders.folder(
            name, "base of mutants", lambda folder: mutations.make_base(folder.parent, name)
        )

    return make


def end_of(base: Path, random: Random, target: str) -> str:
    """How one mutant of a checkpoint ends; raises ``Unexpected``."""
    with tempfile.TemporaryDirectory() as name:
        folder, place = Path(name, "mutant"), Path(name, "place")
        shutil.copytree(base, folder)
        place.mkdir()
        change = mutations.mutate(folder, random)
        task = random.choice(mutations.TASKS)
        try:
            return mutations.attempt(folder, task, target, place)[0]
        except Exception as error:
            raise AssertionError(f"{base.name}, {task}, {change}: {error!r}") from error


def end_of_bundle(bundle: Path, random: Random) -> str:
    """How one mutant of a bundle ends; raises ``Unexpected``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "mutant")
        shutil.copytree(bundle, folder)
        change = mutations.mutate_bundle(folder, random)
        try:
            return mutations.attempt_bundle(folder)[0]
        except Exception as error:
            raise AssertionError(f"{change}: {error!r}") from error


def _property(examples: int) -> settings:
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=PHASES,
        suppress_health_check=checks,
    )


RANDOMS = st.randoms(use_true_random=False)


@pytest.mark.slow
@_property(25)
@given(random=RANDOMS, name=st.sampled_from(("tiny-sharded", "tiny-sdxl")))
def test_a_mutated_checkpoint_folds_or_is_refused(
    base: Callable[[str], Path], random: Random, name: str
) -> None:
    assert end_of(base(name), random, "diffusers") in ENDS


@pytest.fixture(scope="session")
def whole_bundle(shared_folders: SharedFolders) -> Path:
    """All parts of a loop, with its goldens, small."""
    return shared_folders.folder(
        "edit-onnx-int8",
        "bundle of mutants",
        lambda folder: mutations.make_bundle(folder.parent),
    )


@pytest.mark.slow
@_property(60)
@given(random=RANDOMS)
def test_a_mutated_bundle_verifies_or_is_refused(whole_bundle: Path, random: Random) -> None:
    assert end_of_bundle(whole_bundle, random) in ENDS


@pytest.mark.slow
def test_a_valid_bundle_verifies(whole_bundle: Path) -> None:
    assert mutations.attempt_bundle(whole_bundle)[0] == mutations.VERIFIED


@pytest.mark.slow
@_property(25)
@given(random=RANDOMS, name=st.sampled_from(mutations.BASES))
def test_a_mutated_checkpoint_is_proved_or_refused(
    base: Callable[[str], Path], random: Random, name: str
) -> None:
    """Through the whole exporter; what a toolchain makes of a program is tested for each."""
    assert end_of(base(name), random, "reference") in ENDS


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_mutated_checkpoint_is_an_onnx_bundle_or_refused(
    base: Callable[[str], Path], seed: int
) -> None:
    """Changes of values alone, most of which a checkpoint stands."""
    folder = base(mutations.BASES[seed % len(mutations.BASES)])
    assert end_of(folder, Random(seed), "onnx") in ENDS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-sharded", "tiny-sdxl"])
@pytest.mark.parametrize("target", ["diffusers", "reference"])
def test_valid_input_is_a_correct_export(
    base: Callable[[str], Path], tmp_path: Path, name: str, target: str
) -> None:
    """The test of the test: nothing is refused that was not changed."""
    assert mutations.attempt(base(name), "fill", target, tmp_path)[0] == mutations.CORRECT
