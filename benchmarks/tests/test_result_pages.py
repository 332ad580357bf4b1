"""Pages of results keep the rows that a run does not name. No model is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1]


def run(script: str, work: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments, "--out", str(work)],
        env={**os.environ, "HOME": str(work), "PYTHONPATH": str(BENCHMARKS.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def conformance_row(target: str, db: float) -> dict[str, Any]:
    key = {"checkpoint": "tiny", "target": target, "scheme": "int8", "task": "t2i"}
    proof = {"unet": db, "pipeline": None}
    return {**key, "exit": 0, "proof": proof, "bytes": 1, "runner": "r", "reason": None}


def test_conformance(tmp_path: Path) -> None:
    write(tmp_path / "conformance.json", [conformance_row(t, 30.0) for t in ("onnx", "executorch")])
    rows = tmp_path / ".cache/mtu-export/conformance/rows"
    for target in ("onnx", "executorch"):
        write(rows / f"tiny-{target}-int8-t2i.json", conformance_row(target, 40.0))
    run("conformance.py", tmp_path, "--done", "--targets", "executorch")
    document = json.loads((tmp_path / "conformance.json").read_text("utf-8"))
    assert [(row["target"], row["proof"]["unet"]) for row in document] == [
        ("onnx", 30.0),
        ("executorch", 40.0),
    ]
    page = (tmp_path / "conformance.md").read_text("utf-8")
    assert "| tiny | onnx | int8 | t2i |  |  |  |  | 30.0 |  | not run | 1 | r |" in page


def shared_export(scale: int) -> dict[str, Any]:
    sizes = dict.fromkeys(("weight_bytes", "bundle_bytes", "cpu_s", "peak_rss_gb"), 100 * scale)
    stages = {"lower to onnx": 10 * scale, "text_encoder: capture": 5, "verify": 1000}
    return {
        **sizes,
        "exit": 0,
        "golden_bytes": 50,
        "stages_s": stages,
        "task_weight_bytes": {"inpaint": 7},
        "graph_bytes": {},
        "db": {"unet/inpaint": 40.0 + scale},
    }


def test_shared(tmp_path: Path) -> None:
    """One row is done since, the other stays; what proves is no part of what makes."""
    shared = {"alone": {"inpaint": shared_export(1)}, "shared": shared_export(2)}
    rows = [{"size": "sd15", "target": "onnx", "scheme": s, **shared} for s in ("int8", "fp32")]
    write(tmp_path / "shared.json", rows)
    done = {**rows[1], "memory": {"one": {"inpaint": 2.0}, "four": {"t2i": 1.0, "inpaint": 3.0}}}
    write(tmp_path / ".cache/mtu-export/shared/rows/sd15-onnx-fp32.json", done)
    run("shared.py", tmp_path, "--only", "nothing")
    assert json.loads((tmp_path / "shared.json").read_text("utf-8")) == [rows[0], done]
    page = (tmp_path / "shared.md").read_text("utf-8")
    figures = (
        "2.000 | 2.000 | 3.000 | not run | {} | not run | 1.667 | 2.000 | 2.000 | 7 | inside | 1.00"
    )
    assert f"| sd15 | onnx | int8 | {figures.format('not run')} |" in page
    assert f"| sd15 | onnx | fp32 | {figures.format('1.500')} |" in page


def export_times_row(tree: str, target: str, cpu_s: float) -> dict[str, Any]:
    figures = {"cpu_s": cpu_s, "wall_s": cpu_s + 1}
    key = {"target": target, "scheme": "int8", "parts": "all", "tree": tree, "commit": f"c-{tree}"}
    return {**key, **figures, "rounds": [figures] * 3}


def test_export_times(tmp_path: Path) -> None:
    """Rows that a run does not measure stay, and a tree that was not measured is an empty cell."""
    rows = [
        export_times_row("before", "onnx", 60.0),
        export_times_row("now", "onnx", 15.0),
        export_times_row("now", "coreml", 20.25),
    ]
    write(tmp_path / "export_times.json", {"machine": {}, "rows": rows})
    run("export_times.py", tmp_path, "--rounds", "0")
    assert json.loads((tmp_path / "export_times.json").read_text("utf-8"))["rows"] == rows
    page = (tmp_path / "export_times.md").read_text("utf-8")
    assert "| onnx | int8 | all | 60.0 s (61.0 s) | 15.0 s (16.0 s) | 15 s | 3 |" in page
    assert "| coreml | int8 | all |  | 20.2 s (21.2 s) | 15 s | 3 |" in page
    assert "Commits: before c-before, now c-now." in page
