"""Every scheduler class of diffusers: it is a table, or one line says why not."""

from __future__ import annotations

import diffusers
import pytest

from mtu_export.exporter import schedule
from mtu_export.spec import MtuExportError

CLASSES = sorted(
    name
    for name in dir(diffusers.schedulers)
    if name.endswith("Scheduler") and isinstance(getattr(diffusers.schedulers, name), type)
)
# passes at 20 steps, history, how many of the passes add noise, img2img
TABLES: dict[str, tuple[int, int, int, bool]] = {
    "CogVideoXDDIMScheduler": (20, 1, 0, True),
    "DDIMInverseScheduler": (20, 1, 0, False),
    "DDIMParallelScheduler": (20, 1, 0, True),
    "DDIMScheduler": (20, 1, 0, True),
    "DDPMParallelScheduler": (20, 1, 20, True),
    "DDPMScheduler": (20, 1, 20, True),
    "DEISMultistepScheduler": (20, 2, 0, True),
    "DPMSolverMultistepInverseScheduler": (20, 2, 0, True),
    "DPMSolverMultistepScheduler": (20, 2, 0, True),
    "DPMSolverSinglestepScheduler": (20, 2, 0, True),
    "EDMDPMSolverMultistepScheduler": (20, 2, 0, True),
    "EDMEulerScheduler": (20, 1, 0, True),
    "EulerAncestralDiscreteScheduler": (20, 1, 19, True),
    "EulerDiscreteScheduler": (20, 1, 0, True),
    "FlowMapEulerDiscreteScheduler": (20, 1, 0, False),
    "FlowMatchEulerDiscreteScheduler": (20, 1, 0, False),
    "FlowMatchHeunDiscreteScheduler": (39, 2, 0, False),
    "FlowMatchLCMScheduler": (20, 1, 19, False),
    "HeunDiscreteScheduler": (39, 2, 0, True),
    "IPNDMScheduler": (20, 4, 0, False),
    "KDPM2AncestralDiscreteScheduler": (39, 2, 19, True),
    "KDPM2DiscreteScheduler": (39, 2, 0, True),
    "LCMScheduler": (20, 1, 19, True),
    "LMSDiscreteScheduler": (20, 4, 0, True),
    "LTXEulerAncestralRFScheduler": (20, 1, 19, False),
    "MiniMaxH3Scheduler": (19, 1, 0, False),
    "PNDMScheduler": (21, 4, 0, True),
    "SASolverScheduler": (20, 3, 13, True),
    "TCDScheduler": (20, 1, 19, True),
    "UniPCMultistepScheduler": (20, 3, 0, True),
}
REFUSED = {
    "AmusedScheduler": "missing 1 required positional argument",
    "BlockRefinementScheduler": "too many values to unpack",
    "CMStochasticIterativeScheduler": "clip_denoised is on; set it to false",
    "CogVideoXDPMScheduler": "missing 2 required positional arguments",
    "ConsistencyDecoderScheduler": "more than 2 inference steps are not supported",
    "CosineDPMSolverMultistepScheduler": "a package that is not installed|draws noise",
    "DDPMWuerstchenScheduler": "cannot do 20 steps",
    "DPMSolverSDEScheduler": "a package that is not installed|draws noise",
    "DiscreteDDIMScheduler": "cannot do 20 steps",
    "EntropyBoundScheduler": "cannot do 20 steps",
    "HeliosDMDScheduler": "cannot do 20 steps",
    "HeliosScheduler": "cannot do 20 steps",
    "KarrasVeScheduler": "missing 1 required positional argument: 'sample_hat'",
    "PiflowScheduler": "cannot do 20 steps",
    "RFD4ProteinaScheduler": "missing 4 required positional arguments",
    "RePaintScheduler": "missing 2 required positional arguments",
    "SCMScheduler": "not supported when num_inference_steps != 2",
    "ScoreSdeVeScheduler": "no attribute 'step'",
    "ScoreSdeVpScheduler": "no attribute 'step'",
    "UnCLIPScheduler": "only supports `beta_schedule`",
    "VQDiffusionScheduler": "missing 1 required positional argument",
}


@pytest.mark.parametrize("name", [name for name in CLASSES if name in TABLES])
def test_a_class_that_is_a_table(name: str) -> None:
    passes, history, drawing, from_picture = TABLES[name]
    scheduler = schedule.load(None, name)
    table = schedule.table(scheduler, 20)
    noisy = sum(step.noise != 0 for step in table.passes)
    assert (len(table.passes), table.depth, noisy) == (passes, history, drawing)
    if from_picture:
        assert schedule.table(scheduler, 20, 0.5).start_picture > 0
    else:
        with pytest.raises(MtuExportError, match="has no add_noise"):
            schedule.table(scheduler, 20, 0.5)


@pytest.mark.parametrize("name", [name for name in CLASSES if name in REFUSED])
def test_a_class_that_is_refused(name: str) -> None:
    with pytest.raises(MtuExportError, match=REFUSED[name]) as caught:
        schedule.table(schedule.load(None, name), 20)
    assert "\n" not in str(caught.value)


def test_a_class_of_another_version_does_not_crash() -> None:
    """It need not be in the lists: a new one is a table, or refused in one line."""
    for name in set(CLASSES) - TABLES.keys() - REFUSED.keys():
        try:
            schedule.table(schedule.load(None, name), 20)
        except MtuExportError as error:
            assert "\n" not in str(error)


def test_the_lists_name_each_class_once() -> None:
    assert not TABLES.keys() & REFUSED.keys()


@pytest.mark.parametrize("name", ["DDPM", "EulerAncestralDiscrete", "KDPM2AncestralDiscrete"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 50, 100])
def test_ancestral_steps_at_other_counts(name: str, steps: int) -> None:
    scheduler = schedule.load(None, f"{name}Scheduler")
    assert schedule.table(scheduler, steps).draws >= steps - (steps == 1)


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 25, 50])
def test_distilled_steps_at_other_counts(name: str, steps: int) -> None:
    noisy = [step.noise != 0 for step in schedule.table(schedule.load(None, name), steps).passes]
    assert noisy == [True] * (steps - 1) + [False]


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_more_steps_than_the_distillation_had_are_refused(name: str) -> None:
    with pytest.raises(MtuExportError, match=f"{name} cannot do 51 steps here") as caught:
        schedule.table(schedule.load(None, name), 51)
    assert "\n" not in str(caught.value)
