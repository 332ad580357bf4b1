"""The small world's whole run, from parts to the table, with hardly any training."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.shapes import __main__ as program
from benchmarks.shapes import building, cases, guidance, shipping, table, text, vae, world
from mtu_export import bundle


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the sizes' homes are, with configs of two steps and few samples and cases."""
    monkeypatch.setenv("HOME", str(tmp_path))
    configs = tmp_path / "configs"
    shutil.copytree(program.CONFIGS, configs)
    for path in configs.rglob("*.toml"):
        config = re.sub(r"(?m)^steps = \d+", "steps = 2", path.read_text("utf-8"))
        path.write_text(re.sub(r"(?m)^batch_size = \d+", "batch_size = 4", config), "utf-8")
    few: dict[str, int] = dict.fromkeys(cases.TASKS, 8)
    patches: list[tuple[Any, str, Any]] = [
        (program, "CONFIGS", configs),
        (program.building, "build", partial(building.build, gated=False)),
        (cases, "small", lambda: cases.Shapes(world.SMALL, few)),
        (cases, "full", lambda: cases.Shapes(world.FULL, few)),
        (vae, "_POOL", 64),
        (vae, "psnr", partial(vae.psnr, count=16)),
        (text, "probe", partial(text.probe, count=400)),
        (building, "reading", partial(building.reading, count=4)),
        (guidance, "_CASES", 2),
        (guidance, "_TEXT", (1.5, 2.0)),
        (guidance, "_IMAGE", (1.0,)),
        (table, "TORCH_CASES", 3),
        (table, "ARTEFACT_CASES", 2),
        (table, "ARTEFACTS", [("onnx", "int8")]),
        (table, "RESULTS", tmp_path / "results"),
    ]
    for where, name, value in patches:
        monkeypatch.setattr(where, name, value)
    return tmp_path / ".cache" / "mtu-export" / "shapes"


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_the_full_configs_train(root: Path) -> None:
    """bf16 and three levels; the parts, the dense UNet and the MTU of them."""
    for stage in ("parts", "t2i", "mtu-n4"):
        program.run("full", root / "full", stage, None)
    config = json.loads((root / "full" / "mtu-n4" / "unet" / "config.json").read_text("utf-8"))
    assert config["num_experts"] == 4
    assert config["sample_size"] == 16


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_every_stage_ends_in_a_table(root: Path, tmp_path: Path) -> None:
    root = root / "small"
    program.run("small", root, None, None)
    results = json.loads((tmp_path / "results" / "shapes_small.json").read_text("utf-8"))
    assert set(results["torch"]["MTU N=4"]) == set(cases.TASKS)
    for task in cases.TASKS:  # the fold changes no picture by more than rounding
        live, folded = (results["torch"][name][task] for name in ("MTU N=4", "MTU N=4 folded"))
        for measure, (mean, _, _) in live.items():
            assert folded[measure][0] == pytest.approx(mean, abs=0.02)
    page = (tmp_path / "results" / "shapes_small.md").read_text("utf-8")
    assert page.count("| onnx int8 |") == 4 + 4  # paired, and the ladder
    for picture in ("shapes_small.png", "shapes_small_router.png"):
        assert picture in page
        assert (tmp_path / "results" / picture).is_file()
    card = (root / shipping.SHIPPED / "README.md").read_text("utf-8")
    assert "| mtu-n4 | t2i, edit, sr, inpaint |" in card
    assert len(list((root / "sheets").iterdir())) == len(cases.TASKS)
    exported = bundle.read(table.exported(root, "onnx", "int8"))
    scales = {task.name: task.scales.text for task in exported.tasks}
    chosen = json.loads((root / "guidance.json").read_text("utf-8"))
    assert scales["edit"] == chosen["edit"]["text"]
    assert scales["sr"] is None
    size = sum(p.stat().st_size for p in (root / shipping.SHIPPED).rglob("*") if p.is_file())
    assert size < shipping.MOST_BYTES
