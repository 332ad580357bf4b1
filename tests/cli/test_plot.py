"""Pictures: written whole or not at all, readable names, and one line for a bad path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mtu_export.cli import plot
from mtu_export.spec import PlanError, ResourceError, ToolchainMissing, extras
from tests.support.typed import run

PNG = b"\x89PNG\r\n\x1a\n"
KINDS = ("ffn", "norm", "resnet", "routers", *"abcdefgh")


def weights(layers: int, tasks: int, experts: int) -> list[dict[str, Any]]:
    def row(layer: int, task: int) -> list[float]:
        return [(1 + (layer + task * e) % 7) / 10 for e in range(experts)]

    return [
        {
            "layer": f"down_blocks.1.attentions.0.transformer_blocks.{layer}",
            "tasks": {f"task{task}": row(layer, task) for task in range(tasks)},
        }
        for layer in range(layers)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(16, 4, 4), (70, 4, 4), (3, 1, 1), (4, 8, 32)])
def test_heat_map(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    path = tmp_path / "map.png"
    plot.heat_map(weights(*shape), path)
    assert path.read_bytes().startswith(PNG)
    assert path.stat().st_size > 8_000
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", plot.SUFFIXES)
def test_bars(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bars{suffix}"
    layers = [{"kind": KINDS[i % 12], "deviation": 100.0 - i} for i in range(60)]
    kinds = [{"kind": kind, "deviation": float(i)} for i, kind in enumerate(KINDS)]
    plot.bars(layers, kinds, path)
    assert path.stat().st_size > 8_000


def test_names_are_text(tmp_path: Path) -> None:
    (layer,) = weights(1, 1, 2)
    layer["tasks"] = {"$\\frac{x$": [0.5, 0.5], "a" * 64: [0.5, 0.5]}
    layer["layer"] = "$x^$\x1b[2J_{"
    plot.heat_map([layer], tmp_path / "odd.svg")
    assert "\x1b" not in (tmp_path / "odd.svg").read_text("utf-8")


def test_a_bad_path_is_refused_before_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there.png"
    there.write_text("mine")
    with pytest.raises(PlanError, match="exists; choose another --plot or pass --force"):
        plot.require_writable(there, False)
    plot.require_writable(there, True)
    with pytest.raises(PlanError, match=r"must end in \.png, \.svg, \.pdf"):
        plot.require_writable(tmp_path / "a.jpg", False)
    with pytest.raises(PlanError, match="there is no folder"):
        plot.require_writable(tmp_path / "none" / "a.png", False)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(PlanError, match="is a folder or a link"):
        plot.require_writable(tmp_path / "folder.png", True)
    with pytest.raises(PlanError, match="File name too long"):
        plot.require_writable(tmp_path / ("a" * 300 + ".png"), False)
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ToolchainMissing, match=r"pip install 'mtu-export\[plot\]'"):
        plot.require_writable(tmp_path / "a.png", False)


def test_a_failure_leaves_the_older_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    path = tmp_path / "map.png"
    path.write_text("mine")

    def full(self: Figure, out: Path, **arguments: object) -> None:
        Path(out).write_text("half")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        plot.heat_map(weights(1, 1, 1), path, force=True)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


# --------------------------------------------------------------------------- as a user types it


@pytest.mark.slow
def test_inspect_plots_and_prints_one_line_a_block(
    pipeline: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    inspect = ["inspect", str(pipeline)]
    code, out, err = run([*inspect, "--plot", "map.png"], monkeypatch, capfd)
    assert (code, err.splitlines()[0][:9]) == (0, "✓ measure")
    assert (tmp_path / "map.png").read_bytes().startswith(PNG)
    assert len([line for line in out.splitlines() if ".attn.0.block.0" in line]) == 3
    assert "conv + linear" in out
    code, out, _ = run([*inspect, "--json", "--height", "64"], monkeypatch, capfd)
    result = json.loads(out)
    assert result["image"] == "64 x 128"
    assert len(result["expert weights"][0]["tasks"]["edit"]) == result["config"]["num_experts"]
    code, out, err = run([*inspect, "--plot", "map.png"], monkeypatch, capfd)
    assert (code, out) == (2, "")
    assert err == ("error: picture 'map.png' exists; choose another --plot or pass --force\n")
    code, out, err = run([*inspect, "--width", "7"], monkeypatch, capfd)
    assert (code, out) == (2, "")
    assert "error: --width must be a multiple of 16" in err


@pytest.mark.slow
def test_inspect_against_prints_the_first_rows(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["inspect", str(tiny), "--against", str(tiny), "--plot", "bars.png"]
    code, out, _ = run(arguments, monkeypatch, capfd)
    assert code == 0
    assert (tmp_path / "bars.png").read_bytes().startswith(PNG)
    assert "more (--json has all)" in out
    code, out, _ = run([*arguments[:4], "--json"], monkeypatch, capfd)
    result = json.loads(out)
    assert len(result["layers"]) > 20
    assert result["not compared"] == []
    assert {layer["relative"] for layer in result["layers"]} == {0.0}
    code, _, err = run([*arguments[:4], "--height", "64"], monkeypatch, capfd)
    assert (code, err[:30]) == (2, "error: --against compares weig")


def test_a_bundle_has_nothing_to_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "manifest.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for arguments in (["--plot", "a.png"], ["--against", "b"], ["--height", "64"]):
        code, out, err = run(["inspect", "b", *arguments], monkeypatch, capfd)
        assert (code, out) == (2, "")
        assert err == f"error: {arguments[0]} is for a checkpoint; 'b' is a bundle\n"


def test_matplotlib_is_silent_and_loaded_when_asked(tmp_path: Path) -> None:
    """Even with a home that cannot be written, of which matplotlib says a word in its log."""
    code = (
        "import sys; from pathlib import Path; from mtu_export.cli import plot\n"
        "assert 'matplotlib' not in sys.modules\n"
        "rows = [{'layer': 'x', 'tasks': {'t': [1.0]}}]\n"
        f"plot.heat_map(rows, Path({str(tmp_path / 'a.png')!r}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    (tmp_path / "file").write_text("")
    environment = {**os.environ, "HOME": "/proc/none", "MPLCONFIGDIR": str(tmp_path / "file")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""
