"""What memory and disk do not hold is refused with figures before any work."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mtu_export import exporter, models, targets
from mtu_export.exporter import budget, options
from mtu_export.spec import PlanError, ResourceError, Support, Unsupported
from mtu_export.testing.architectures import ARCHITECTURES


@pytest.fixture
def resolved(tiny: Path, tmp_path: Path) -> options.Plan:
    return options.resolve(target="onnx", model=tiny, task="sr", out=tmp_path / "a" / "o")


def test_too_little_memory_is_refused_before_any_work(
    resolved: options.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[str] = []

    def watch(stage: str) -> object:
        stages.append(stage)
        raise AssertionError(stage)

    with pytest.raises(ResourceError, match=r"needs about .* of memory, .* available; no scheme"):
        exporter.export(replace(resolved, memory=1e6), watch)  # type: ignore[arg-type]
    assert stages == []
    assert list(tmp_path.iterdir()) == []


def test_the_line_names_what_fits(
    resolved: options.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "_BASE_BYTES", 0.0)
    big = replace(resolved, height=8, width=8, memory=5.5e6)  # of 3.3 MB of weights
    infos = {name: replace(targets.load(name).info, supports={}) for name in targets.names()}
    supports = {"fp32": Support(memory=2.0), "int8": Support(memory=1.5)}
    infos["onnx"] = replace(infos["onnx"], supports=supports)
    monkeypatch.setattr(
        targets,
        "load",
        lambda name: SimpleNamespace(info=infos[name]),
    )
    with pytest.raises(ResourceError, match=r"what fits: onnx int8 \(about .*\); --memory GB"):
        budget.require_resources(big)
    budget.require_resources(replace(big, memory=1e9))
    with pytest.raises(Unsupported, match="coreml does not support scheme 'fp32'"):
        budget.require_resources(replace(big, target="coreml", memory=1e9))


def test_a_full_disk_is_refused_before_any_work(
    resolved: options.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ResourceError, match=r"of disk, .* free"):
        exporter.export(resolved)
    assert list(tmp_path.iterdir()) == []


def test_disk_is_that_of_all_parts_and_memory_that_of_the_largest(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"target": "onnx", "model": pipeline, "scheme": "fp32", "task": "edit"}
    plan = options.resolve(**settings, out=tmp_path / "o")
    alone = {
        name: options.resolve(**settings, components=[name], out=tmp_path / "o")
        for name in plan.parts
    }

    def disk(plan_: options.Plan) -> float:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
        with pytest.raises(ResourceError) as caught:
            budget.require_resources(plan_)
        return float(str(caught.value).split("needs about ")[1].split(" MB")[0])

    def memory(plan_: options.Plan) -> str:
        with pytest.raises(ResourceError) as caught:
            budget.require_resources(replace(plan_, memory=1.0))
        return str(caught.value)

    assert len(alone) == 4
    assert disk(plan) == pytest.approx(sum(map(disk, alone.values())), abs=0.3)
    assert disk(alone["text_encoder"]) < disk(alone["unet"]) / 5
    assert memory(plan) == memory(alone["unet"])
    assert memory(alone["vae_decoder"]) != memory(plan)


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_group_limits_what_is_available(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = budget.available_memory()
    assert free > 0
    monkeypatch.setattr(budget, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(budget, "_PROC", tmp_path / "proc")
    assert budget.available_memory() == pytest.approx(free, rel=0.5)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    line = "4:memory:/jobs/1" if version == 1 else "0::/jobs/1"
    (tmp_path / "proc" / "self" / "cgroup").write_text(f"9:name=systemd:/\n{line}\n")
    group = tmp_path / "cgroup" / ("memory/jobs" if version == 1 else "jobs")
    (group / "1").mkdir(parents=True)
    limit, used = ("limit_in_bytes", "usage_in_bytes") if version == 1 else ("max", "current")
    (group / f"memory.{limit}").write_text("300000\n")
    (group / f"memory.{used}").write_text("200000\n")
    (group / "memory.stat").write_text("anon 100\ninactive_file 50000\n")
    assert budget.available_memory() == 150_000
    (group / f"memory.{limit}").write_text("max\n" if version == 2 else f"{2**63 - 4096}\n")
    assert budget.available_memory() == pytest.approx(free, rel=0.5)


def test_scores_grow_with_the_fourth_power_of_the_side(tmp_path: Path) -> None:
    """Three copies of heads x tokens², float32."""

    def needed(architecture: str, side: int) -> float:
        folder = tmp_path / architecture
        folder.mkdir(exist_ok=True)
        config = {"_class_name": "UNet2DConditionModel", **ARCHITECTURES[architecture]}
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
        return models.open(folder).working_bytes("unet", (side, side), 1)

    assert needed("sd15", 512) == 3 * 8 * 4096**2 * 4
    assert needed("sd15", 1024) == 16 * needed("sd15", 512)
    assert needed("sdxl", 512) == 3 * 10 * 1024**2 * 4


@pytest.mark.parametrize("name", targets.names())
def test_every_scheme_that_a_target_takes_has_a_figure(name: str, tiny: Path) -> None:
    for scheme in ("fp32", "fp16", "int8"):
        try:
            options.resolve(target=name, model=tiny, task="sr", scheme=scheme)
        except PlanError as error:
            assert re.search(r"use|nearest|choose", str(error))
            assert scheme not in targets.load(name).info.supports
        else:
            assert targets.load(name).info.supports[scheme].memory > 0


@pytest.mark.parametrize("memory", [0, -1, float("nan"), 1e9])
def test_memory_is_a_number_of_gigabytes(memory: float, tiny: Path) -> None:
    with pytest.raises(PlanError, match="--memory"):
        options.resolve(target="onnx", model=tiny, task="sr", memory=memory)
