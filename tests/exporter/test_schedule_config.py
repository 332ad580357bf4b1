"""What a scheduler's config says of timesteps and sigmas is in its tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest

from mtu_export.bundle import sampler
from mtu_export.bundle.metrics import psnr
from mtu_export.exporter import schedule
from mtu_export.spec import Schedule
from tests.support.scheduler_loop import by_scheduler, fake_numpy

FLOOR_DB = 110.0
LATENT = (1, 4, 16, 16)
SD = dict(schedule.SD_DEFAULT)
V = {"prediction_type": "v_prediction"}
SPACINGS = ("leading", "linspace", "trailing")
SPACED = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
]
ZERO_SNR = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
]
FINAL_SIGMAS = [
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerDiscreteScheduler",
    "UniPCMultistepScheduler",
]


def of_checkpoint(folder: Path, name: str, config: dict[str, Any], steps: int) -> Schedule:
    """The table of a checkpoint with this config, held against the class of diffusers itself."""
    (folder / "scheduler").mkdir(parents=True)
    text = json.dumps({**SD, **config, "_class_name": name})
    (folder / "scheduler" / "scheduler_config.json").write_text(text, "utf-8")
    table = schedule.table(schedule.load(folder, None), steps)
    scheduler = getattr(diffusers, name).from_pretrained(folder, subfolder="scheduler")
    for key, value in config.items():
        assert scheduler.config[key] == value
    noise = sampler.noise((1 + len(table.passes), *LATENT[1:]), 0)
    expected = list(by_scheduler(scheduler, steps, noise))
    actual = list(sampler.latents(table, noise, fake_numpy))
    assert [step.timestep for step in table.passes] == [t for t, _ in expected]
    assert min(psnr(x, y) for (_, x), y in zip(expected, actual, strict=True)) >= FLOOR_DB
    return table


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize("name", SPACED)
def test_timestep_spacing(tmp_path: Path, name: str, steps: int) -> None:
    tables = [
        of_checkpoint(tmp_path / spacing, name, {"timestep_spacing": spacing}, steps)
        for spacing in SPACINGS
    ]
    assert len({table.passes for table in tables}) == 3


@pytest.mark.parametrize("name", ZERO_SNR)
def test_rescale_betas_zero_snr(tmp_path: Path, name: str) -> None:
    spacing = {} if name in ("LCMScheduler", "TCDScheduler") else {"timestep_spacing": "trailing"}
    tables = [
        of_checkpoint(
            tmp_path / str(value), name, {**V, **spacing, "rescale_betas_zero_snr": value}, 8
        )
        for value in (False, True)
    ]
    assert tables[0] != tables[1]


@pytest.mark.parametrize("name", FINAL_SIGMAS)
def test_final_sigmas_type(tmp_path: Path, name: str) -> None:
    tables = [
        of_checkpoint(tmp_path / value, name, {"final_sigmas_type": value}, 8)
        for value in ("zero", "sigma_min")
    ]
    assert tables[0].passes[:-2] == tables[1].passes[:-2]
    assert tables[0].passes[-1] != tables[1].passes[-1]


@pytest.mark.parametrize("name", SPACED)
def test_steps_offset(tmp_path: Path, name: str) -> None:
    plain, moved = (
        of_checkpoint(
            tmp_path / str(value), name, {"timestep_spacing": "leading", "steps_offset": value}, 8
        )
        for value in (0, 3)
    )
    assert moved.passes[0].timestep == plain.passes[0].timestep + 3


def test_set_alpha_to_one(tmp_path: Path) -> None:
    """Only the last pass knows it."""
    tables = [
        of_checkpoint(tmp_path / str(value), "DDIMScheduler", {"set_alpha_to_one": value}, 8)
        for value in (False, True)
    ]
    assert tables[0].passes[:-1] == tables[1].passes[:-1]
    assert tables[0].passes[-1] != tables[1].passes[-1]


@pytest.mark.parametrize("original", [20, 50, 100])
@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_original_inference_steps(tmp_path: Path, name: str, original: int) -> None:
    """The steps of the distillation, of which those of the loop are a part."""
    table = of_checkpoint(tmp_path, name, {"original_inference_steps": original}, 4)
    skip = 1000 // original
    first = skip * original - 1
    assert [step.timestep for step in table.passes] == [
        first - skip * (i * original // 4) for i in range(4)
    ]


def test_timestep_scaling_of_lcm(tmp_path: Path) -> None:
    tables = [
        of_checkpoint(tmp_path / str(value), "LCMScheduler", {"timestep_scaling": value}, 4)
        for value in (10.0, 1.0)
    ]
    assert tables[0] != tables[1]


@pytest.mark.parametrize(
    "config",
    [
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"timestep_type": "continuous", **V},
        {"interpolation_type": "log_linear"},
        {"sigma_min": 0.1, "sigma_max": 10.0, "use_karras_sigmas": True},
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.001 + 0.00001 * i for i in range(1000)]},
        {"num_train_timesteps": 500},
    ],
    ids=str,
)
def test_sigmas_of_euler(tmp_path: Path, config: dict[str, Any]) -> None:
    plain = of_checkpoint(tmp_path / "plain", "EulerDiscreteScheduler", {}, 8)
    changed = of_checkpoint(tmp_path / "changed", "EulerDiscreteScheduler", config, 8)
    assert changed != plain
