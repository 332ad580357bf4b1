"""Tables of schedulers: what is loaded, what is refused, and what is probed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from mtu_export.exporter import schedule
from mtu_export.spec import (
    CheckpointError,
    PlanError,
    UnknownName,
    Unsupported,
)

SD = dict(schedule.SD_DEFAULT)


def folder_with(tmp_path: Path, config: object) -> Path:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config), "utf-8")
    return tmp_path


# ------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("name", schedule.NAMES)
def test_names_load_with_the_config_of_stable_diffusion(name: str) -> None:
    scheduler = schedule.load(None, name)
    assert type(scheduler).__name__ == schedule.SCHEDULERS[name][0]
    assert scheduler.config.beta_end == 0.012
    assert scheduler.config.num_train_timesteps == 1000
    assert bool(scheduler.config.get("use_karras_sigmas")) == name.endswith("karras")


def test_a_checkpoint_without_scheduler_gets_pndm_and_says_so(tmp_path: Path) -> None:
    scheduler = schedule.load(tmp_path, None)
    stock: Any = diffusers.PNDMScheduler.from_config(SD)
    assert isinstance(scheduler, diffusers.PNDMScheduler)
    assert torch.equal(scheduler.alphas_cumprod, stock.alphas_cumprod)
    assert "no scheduler/ in the checkpoint" in schedule.origin(tmp_path, None)


@pytest.mark.parametrize("name", [None, "euler", "ddim", "unipc", "dpm++2m-karras"])
def test_the_checkpoints_config_is_carried_over_as_diffusers_does(
    tmp_path: Path, name: str | None
) -> None:
    config = {
        **SD,
        "beta_start": 0.001,
        "prediction_type": "v_prediction",
        "steps_offset": 3,
        "timestep_spacing": "trailing",
        "_diffusers_version": "0.1",
        "a_key_of_tomorrow": [1, {"a": 2}],
    }
    folder = folder_with(tmp_path, config)
    scheduler = schedule.load(folder, name)
    stock: Any = type(scheduler).from_pretrained(folder, subfolder="scheduler")
    for key in ("beta_start", "prediction_type", "steps_offset", "timestep_spacing"):
        assert scheduler.config[key] == stock.config[key] == config[key]
    assert "no scheduler/" not in schedule.origin(folder, name)


BROKEN: list[dict[str, Any]] = [
    {"_class_name": None},
    {"_class_name": ["PNDMScheduler"]},
    {"_class_name": "os"},
    {"_class_name": "SchedulerMixin"},
    {"_class_name": "StableDiffusionPipeline"},
    {"_class_name": "__init__"},
    {"beta_start": "0.00085"},
    {"beta_schedule": "no such"},
    {"beta_schedule": 3},
    {"beta_start": -1, "beta_schedule": "scaled_linear"},
    {"num_train_timesteps": -1},
    {"num_train_timesteps": 0},
    {"num_train_timesteps": 10**12},
    {"num_train_timesteps": 1000.5},
    {"num_train_timesteps": None},
    {"num_train_timesteps": True},
    {"steps_offset": 10**400},
    {"steps_offset": "1"},
    {"skip_prk_steps": 1},
    {"trained_betas": ["a"]},
    {"trained_betas": {"a": 1}},
    {"trained_betas": [0.1] * 10_001},
]


@pytest.mark.parametrize("change", BROKEN, ids=[str(row)[:50] for row in BROKEN])
def test_a_bad_config_is_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = folder_with(tmp_path, {**SD, **change})
    with pytest.raises(CheckpointError) as caught:
        schedule.load(folder, None)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("change", [{"timestep_spacing": "x"}, {"prediction_type": "x"}])
def test_what_only_a_step_finds_is_one_line_too(tmp_path: Path, change: dict[str, Any]) -> None:
    scheduler = schedule.load(folder_with(tmp_path, {**SD, **change}), "ddim")
    with pytest.raises(Unsupported) as caught:
        schedule.table(scheduler, 4)
    assert "\n" not in str(caught.value)


def test_a_scheduler_folder_without_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    with pytest.raises(CheckpointError, match="is missing"):
        schedule.load(tmp_path, None)


@pytest.mark.parametrize("name", ["no such", "SchedulerMixin", "__doc__", "UNet2DConditionModel"])
def test_an_unknown_name_lists_the_legal_ones(name: str) -> None:
    with pytest.raises(UnknownName, match=r"unknown scheduler .*dpm\+\+2m-karras"):
        schedule.load(None, name)


# ------------------------------------------------------------------------------------- probing


def test_ddim_gives_the_published_coefficients() -> None:
    """Song et al. 2021, equation 12 with σ = 0, written out in float64."""
    scheduler = schedule.load(None, "ddim")
    table = schedule.table(scheduler, 20)
    alphas = scheduler.alphas_cumprod.double()
    for step in table.passes:
        t = int(step.timestep)
        now, then = alphas[t], alphas[t - 50] if t >= 50 else alphas[0]
        x = (then / now).sqrt()
        m = (1 - then).sqrt() - (then * (1 - now) / now).sqrt()
        assert step.x == pytest.approx((float(x), 0, 0, 0), rel=1e-5)
        assert step.m == pytest.approx((float(m), 0, 0, 0), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "passes", "depth"),
    [
        ("ddim", 20, 1),
        ("euler", 20, 1),
        ("dpm++2m", 20, 2),
        ("dpm++2m-karras", 20, 2),
        ("unipc", 20, 3),
        ("pndm", 21, 4),
        ("LMSDiscreteScheduler", 20, 4),
        ("DEISMultistepScheduler", 20, 2),
        ("HeunDiscreteScheduler", 39, 2),
    ],
)
def test_passes_and_history(name: str, passes: int, depth: int) -> None:
    table = schedule.table(schedule.load(None, name), 20)
    assert (len(table.passes), table.depth) == (passes, depth)


def test_plms_is_read_as_it_is_written() -> None:
    """From its fifth pass on PLMS mixes four outputs as 55, −59, 37, −9 (Adams–Bashforth)."""
    table = schedule.table(schedule.load(None, "pndm"), 20)
    for step in table.passes[6:]:
        assert [24 * m / sum(step.m) for m in step.m] == pytest.approx([55, -59, 37, -9], rel=1e-4)
        assert step.x[1:] == pytest.approx((0, 0, 0), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"clip_sample": True}, "clip_sample is on"),
        ({"clip_sample": True, "clip_sample_range": 30.0}, "clip_sample is on"),
        ({"thresholding": True}, "thresholding is on"),
        ({"thresholding": True, "sample_max_value": 50.0}, "thresholding is on"),
    ],
)
def test_clipping_is_refused_with_its_cause(
    tmp_path: Path, change: dict[str, Any], cause: str
) -> None:
    folder = folder_with(tmp_path, {**SD, **change})
    with pytest.raises(Unsupported, match=cause):
        schedule.table(schedule.load(folder, "ddim"), 12)


class Offset(diffusers.DDIMScheduler):
    """A step that adds a constant."""

    def step(self, *arguments: Any, **named: Any) -> Any:
        return (super().step(*arguments, **named)[0] + 1e-3,)


class Bent(diffusers.DDIMScheduler):
    """A step that is linear for impulses, which are 0 and 1, and for nothing else."""

    def step(self, model_output: Any, timestep: Any, sample: Any, **named: Any) -> Any:
        return (super().step(model_output, timestep, sample * sample.abs(), **named)[0],)


class Long(diffusers.DDIMScheduler):
    """A step that uses what was seven passes ago."""

    def set_timesteps(self, *arguments: Any, **named: Any) -> None:
        self.seen: list[torch.Tensor] = []
        super().set_timesteps(*arguments, **named)

    def step(self, model_output: Any, timestep: Any, sample: Any, **named: Any) -> Any:
        self.seen.append(model_output)
        far = self.seen[-8] if len(self.seen) > 7 else 0 * sample
        return (super().step(model_output, timestep, sample, **named)[0] + 0.1 * far,)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Offset, "zero in"), (Bent, "not linear"), (Long, "more than 4 back")],
)
def test_what_is_no_table_is_found(kind: type[Any], reason: str) -> None:
    scheduler = kind(beta_schedule="scaled_linear", clip_sample=False)
    with pytest.raises(Unsupported, match=reason):
        schedule.table(scheduler, 12)


def test_runge_kutta_start_of_pndm_looks_too_far_back(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {**SD, "skip_prk_steps": False})
    with pytest.raises(Unsupported, match="more than 4 back"):
        schedule.table(schedule.load(folder, None), 20)


def test_a_step_that_divides_by_zero_is_refused(tmp_path: Path) -> None:
    config = {**SD, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    folder = folder_with(tmp_path, config)
    with pytest.raises(Unsupported, match="not finite"):
        schedule.table(schedule.load(folder, "ddim"), 4)


def test_zero_terminal_snr_works_with_v_prediction(tmp_path: Path) -> None:
    config = {**SD, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    folder = folder_with(tmp_path, {**config, "prediction_type": "v_prediction"})
    assert len(schedule.table(schedule.load(folder, "ddim"), 4).passes) == 4


ZERO_SNR = {
    "_class_name": "EulerDiscreteScheduler",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
}


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 4, 8, 12, 50])
def test_euler_with_zero_terminal_snr_is_linear(tmp_path: Path, spacing: str, steps: int) -> None:
    """Its first sigma is 4096, where float32 holds no more than 77 to 127 dB of the states."""
    folder = folder_with(tmp_path, {**SD, **ZERO_SNR, "timestep_spacing": spacing})
    assert len(schedule.table(schedule.load(folder, None), steps).passes) == steps


@pytest.mark.parametrize("steps", [0, -1, 1001, True, 2.5, "4", None])
def test_counts_beyond_the_training_are_refused(steps: Any) -> None:
    with pytest.raises(PlanError, match="steps must be 1 to 1000"):
        schedule.table(schedule.load(None, "ddim"), steps)


def test_a_count_that_the_scheduler_cannot_do_names_both() -> None:
    """PNDM with an offset of 1 asks for timestep 1000 of 0..999."""
    with pytest.raises(Unsupported, match="PNDMScheduler cannot do 1000 steps"):
        schedule.table(schedule.load(None, "pndm"), 1000)


def test_tables_are_by_count() -> None:
    scheduler = schedule.load(None, "euler")
    tables = schedule.tables(scheduler, (8, 4, 8))
    assert list(tables) == [4, 8]
    assert tables[4] == schedule.table(scheduler, 4)
    with pytest.raises(PlanError):
        schedule.tables(scheduler, ())


class Awkward(diffusers.DDIMScheduler):
    """A scheduler that cannot do 8 steps."""

    def set_timesteps(self, num_inference_steps: int, *rest: Any, **named: Any) -> None:
        if num_inference_steps == 8:
            raise ValueError("not 8")
        super().set_timesteps(num_inference_steps, *rest, **named)


@pytest.fixture
def awkward() -> Any:
    return Awkward(beta_schedule="scaled_linear", clip_sample=False, num_train_timesteps=20)


def test_a_default_count_that_cannot_be_done_is_left_out_with_its_reason(awkward: Any) -> None:
    baked = schedule.bake(awkward, (8, 12, 50), required=False)
    assert (list(baked.tables), baked.golden) == ([(4, None), (12, None)], 4)
    assert baked.skipped == {
        8: "Awkward cannot do 8 steps here: not 8",
        50: "Awkward: steps must be 1 to 20, got 50",
    }


@pytest.mark.parametrize("steps", [8, 50])
def test_a_count_that_the_user_named_is_refused(awkward: Any, steps: int) -> None:
    with pytest.raises(PlanError, match=f"{steps}"):
        schedule.bake(awkward, (12, steps), required=True)


def test_the_golden_loop_has_a_short_count_of_its_own() -> None:
    """Whatever the user bakes, and the smallest where the scheduler cannot do it."""
    assert schedule.bake(schedule.load(None, "ddim"), (50,), required=True).golden == 4
    brief = diffusers.DDIMScheduler(clip_sample=False, num_train_timesteps=3)
    baked = schedule.bake(brief, (2, 3), required=True)
    assert (list(baked.tables), baked.golden) == ([(2, None), (3, None)], 2)
    assert list(baked.skipped) == [4]


def test_running_out_of_memory_is_no_fault_of_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust(*arguments: Any, **named: Any) -> None:
        raise MemoryError

    scheduler = schedule.load(None, "ddim")
    monkeypatch.setattr(diffusers.DDIMScheduler, "step", exhaust)
    with pytest.raises(MemoryError):
        schedule.table(scheduler, 4)
    monkeypatch.setattr(diffusers.DDIMScheduler, "from_config", exhaust)
    with pytest.raises(MemoryError):
        schedule.load(None, "ddim")


def test_a_probe_leaves_no_trace() -> None:
    scheduler = schedule.load(None, "unipc")
    scheduler.set_timesteps(7)
    before = copy.deepcopy(scheduler.__dict__)
    state = torch.get_rng_state()
    schedule.table(scheduler, 5)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(scheduler.timesteps, before["timesteps"])
    assert scheduler.model_outputs == before["model_outputs"]


def test_a_value_set_after_loading_counts() -> None:
    scheduler = schedule.load(None, "ddim")
    plain = schedule.table(scheduler, 4)
    scheduler.register_to_config(prediction_type="v_prediction")
    assert schedule.table(scheduler, 4) != plain
