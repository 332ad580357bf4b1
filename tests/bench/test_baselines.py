"""Baselines: exported once from the bundle's own checkpoint, kept by content, never a crash."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from mtu_export import bundle
from mtu_export.bench import baselines
from mtu_export.bundle import Bundle
from mtu_export.spec import PlanError, UnknownName
from mtu_export.storage import locks

pytestmark = pytest.mark.slow
TESTDATA = Path(__file__).parents[2] / "runtime" / "testdata" / "edit-onnx-int8"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mtu-export" / "bench" / "baselines"


@pytest.fixture
def source(bundles: Callable[..., Path]) -> Bundle:
    """Two tasks, of the target that is exported fastest; only read."""
    return bundle.read(bundles("reference", "fp32", ("edit", "t2i")))


class _Exports:
    """Stands for the processes that export: what they would have been asked and how they end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int, lines: str) -> None:
        self.code, self.lines = code, lines
        self.jobs: list[dict[str, Any]] = []
        monkeypatch.setattr(baselines.subprocess, "run", self.run)

    @property
    def count(self) -> int:
        return len(self.jobs)

    def run(self, command: list[str], *, stdout: Any, **_: Any) -> CompletedProcess[bytes]:
        self.jobs.append(json.loads(command[-1]))
        stdout.write(self.lines.encode())
        return CompletedProcess(command, self.code)


def test_they_are_made_once(
    source: Bundle, atom: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    options: dict[str, Any] = {"tasks": ["t2i"], "progress": lines.append}
    exported = baselines.baselines(source, atom, **options)
    assert [(each.kind, each.task) for each in exported] == [
        ("dense", "t2i"),
        ("unfolded", "t2i"),
        ("plain", "t2i"),
    ]
    dense, unfolded = (bundle.read(each.folder) for each in exported[:2] if each.folder)
    assert dense.folder.parent == cache
    assert exported[2].folder is None
    assert exported[2].reason == "reference takes no --plain; executorch, onnx do"
    assert [dense.manifest.options, unfolded.manifest.options] == [{"dense": True}, {"fold": False}]
    single, work = bundle.read(source.folder).manifest.parts[0], dense.manifest.parts[0]
    assert work.cost.flops_total == single.cost.flops_total
    assert {part.name for part in (*dense.parts, *unfolded.parts)} == {single.name}
    assert unfolded.manifest.parts[0].cost.flops_total > work.cost.flops_total
    assert dense.manifest.source.sha256 == source.manifest.source.sha256

    again = _Exports(monkeypatch, 4, "error: no export was expected")
    assert baselines.baselines(source, atom, **options) == exported
    assert again.count == 0
    with (dense.folder / bundle.GOLDENS).open("ab") as stream:
        stream.write(b"?")
    broken, *others = baselines.baselines(source, atom, **options)
    assert (broken.folder, broken.reason) == (None, "no export was expected")
    assert others == exported[1:]
    assert not dense.folder.exists()


@pytest.mark.exhaustive
def test_a_single_task_is_the_usual_export(source: Bundle, atom: Path) -> None:
    (single,) = baselines.baselines(source, atom, kinds=["single"], tasks=["edit"])
    assert single.folder is not None
    exported = bundle.read(single.folder)
    assert [task.name for task in exported.tasks] == ["edit"]
    assert (exported.manifest.scheme.name, exported.manifest.options) == ("fp32", {})
    assert {verdict.stage for verdict in exported.proof} == {"folded", "exported"}


def test_a_fleet_has_a_bundle_for_each_task(
    source: Bundle, atom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports = _Exports(monkeypatch, 4, "error: not made")
    singles = baselines.fleet(source, atom)
    assert [(each.kind, each.task) for each in singles] == [("single", "t2i"), ("single", "edit")]
    assert [job["options"]["task"] for job in exports.jobs] == ["t2i", "edit"]
    assert [job["options"]["components"] for job in exports.jobs] == [["unet"]] * 2


def test_a_floor_and_layers_of_the_bundle_hold_for_its_baselines(
    bundles: Callable[..., Path], atom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = "mid_block.attentions.0.proj_in"
    source = bundle.read(bundles("reference", "int8", ("edit",), min_psnr=20, keep_float=layer))
    exports = _Exports(monkeypatch, 4, "error: not made")
    baselines.baselines(source, atom, kinds=["dense", "unfolded", "single"])
    options = [job["options"] for job in exports.jobs]
    assert [each["min_psnr"] for each in options] == [20, 20, 20]
    kept = [re.escape(layer)]
    assert [each.get("keep_float") for each in options] == [kept, None, kept]


def test_a_failed_export_is_a_reason(
    source: Bundle, atom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that would fail again is not tried again; one that was killed is."""
    failing = _Exports(monkeypatch, 4, "load: 1.0 s\nerror: no kernel for it\n")
    options: dict[str, Any] = {"kinds": ["dense"], "tasks": ["t2i"]}
    for _ in range(2):
        (failed,) = baselines.baselines(source, atom, **options)
        assert (failed.folder, failed.reason) == (None, "no kernel for it")
    assert failing.count == 1
    killed = _Exports(monkeypatch, -9, "load: 1.0 s\n")
    for count in (1, 2):
        (failed,) = baselines.baselines(source, atom, kinds=["unfolded"], tasks=["t2i"])
        assert failed.reason == "its export was ended by signal 9"
        assert killed.count == count


def test_two_do_not_make_the_same_one(
    source: Bundle, atom: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports = _Exports(monkeypatch, 6, "error: no disk")
    options: dict[str, Any] = {"kinds": ["dense"], "tasks": ["edit"]}
    baselines.baselines(source, atom, **options)
    (log,) = cache.glob("*.log")
    lock = locks.acquire(log.with_suffix(".lock"))
    assert lock is not None
    waiting, lines = threading.Event(), []

    def progress(line: str) -> None:
        lines.append(line)
        waiting.set()

    options["progress"] = progress
    thread = threading.Thread(target=baselines.baselines, args=(source, atom), kwargs=options)
    thread.start()
    assert waiting.wait(60)
    assert (lines, exports.count) == (["baseline dense of edit: another process is making it"], 1)
    locks.remove(lock)
    thread.join(60)
    assert exports.count == 2
    assert lines[1:] == [
        "baseline dense of edit: exporting",
        "baseline dense of edit: none: no disk",
    ]


def test_another_checkpoint_is_refused_by_both_names(
    source: Bundle, make_tiny: Callable[..., Path]
) -> None:
    digest = source.manifest.source.sha256[:12]
    message = rf" was exported from .* \(sha256 {digest}\), not from .*: name its checkpoint"
    with pytest.raises(PlanError, match=message):
        baselines.baselines(source, make_tiny("atom", seed=1))


def test_refusals(source: Bundle, atom: Path) -> None:
    with pytest.raises(UnknownName, match="baseline 'folded'; choose from: dense, unfolded"):
        baselines.baselines(source, atom, kinds=["folded"])  # type: ignore[list-item]
    with pytest.raises(UnknownName, match="task 'sr'; choose from: t2i, edit"):
        baselines.baselines(source, atom, tasks=["sr"])
    options = {**source.manifest.options, "fold": False}
    unfolded = replace(source, manifest=source.manifest.model_copy(update={"options": options}))
    with pytest.raises(PlanError, match=r" is a baseline itself \(fold: false\)"):
        baselines.baselines(unfolded, atom)
    with pytest.raises(PlanError, match="was exported from"):
        baselines.baselines(bundle.read(TESTDATA))
