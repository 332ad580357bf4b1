"""Sources on the hub, from its cache: their revision is chosen, and their commit is recorded.

A snapshot's own path is one of them too; a copy of it outside the cache is a folder like any other.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mtu_export import checkpoint
from mtu_export.cli import app
from mtu_export.exporter.inspection import inspect
from mtu_export.models.mtu import config as mtu_config
from mtu_export.spec import PlanError
from tests.authoring.test_upcycle import dense
from tests.support.foreign import example, put, stacked_state


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot ``abc123`` of ``someone/model``, which its tag ``v2`` names."""
    from huggingface_hub import constants

    repository = tmp_path / "cache" / "models--someone--model"
    for reference, commit in (("main", "000000"), ("v2", "abc123")):
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / reference).write_text(commit)
    (repository / "blobs").mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = repository / "snapshots" / "abc123"
    folder.mkdir(parents=True)
    return folder


def run(*arguments: object) -> None:
    app([*map(str, arguments)], standalone_mode=False)


def recorded(checkpoint_folder: Path) -> dict[str, Any]:
    config = mtu_config.read_config(checkpoint_folder)
    return {key: config.get(key) for key in (checkpoint.SOURCE, checkpoint.REVISION)}


HUB = {checkpoint.SOURCE: "someone/model", checkpoint.REVISION: "abc123"}
NOTHING = dict.fromkeys(HUB)


def test_upcycle_records_the_commit_of_its_source(snapshot: Path, tmp_path: Path) -> None:
    dense(snapshot)
    run("upcycle", "someone/model", tmp_path / "hub", "--revision", "v2", "--task", "t2i")
    assert recorded(tmp_path / "hub") == HUB
    run("upcycle", snapshot, tmp_path / "snapshot", "--task", "t2i")
    assert recorded(tmp_path / "snapshot") == HUB
    shutil.copytree(snapshot, tmp_path / "copy")
    run("upcycle", tmp_path / "copy", tmp_path / "folder", "--task", "t2i")
    assert recorded(tmp_path / "folder") == NOTHING


def test_adopt_records_the_commit_of_its_source(snapshot: Path, tmp_path: Path) -> None:
    weights, table = put(tmp_path, stacked_state(), example())
    shutil.move(weights, snapshot / "model.safetensors")
    run("adopt", "someone/model", tmp_path / "hub", "--map", table, "--revision", "v2")
    assert recorded(tmp_path / "hub") == HUB
    run("adopt", snapshot, tmp_path / "snapshot", "--map", table)
    assert recorded(tmp_path / "snapshot") == HUB
    shutil.copytree(snapshot, tmp_path / "copy")
    run("adopt", tmp_path / "copy", tmp_path / "folder", "--map", table)
    assert recorded(tmp_path / "folder") == NOTHING


def test_inspect_tells_the_commit(snapshot: Path, atom: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(atom / "unet", snapshot / "unet")
    run("inspect", "someone/model", "--revision", "v2", "--json")
    assert json.loads(capsys.readouterr().out)["revision"] == "abc123"
    assert inspect(snapshot)["revision"] == "abc123"
    shutil.copytree(snapshot, tmp_path / "copy")
    assert "revision" not in inspect(tmp_path / "copy")


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "FOLDER"),
        ("inspect",),
        ("upcycle", "FOLDER", "OUT", "--task", "t2i"),
        ("upcycle", "--arch", "tiny", "--random", "OUT"),
        ("adopt", "FOLDER", "OUT", "--map", "MAP"),
        ("adopt", "FOLDER/w.safetensors", "OUT", "--map", "MAP"),
    ],
    ids=lambda command: " ".join(command),
)
def test_what_is_not_on_the_hub_has_no_revision(command: Sequence[str], tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    _, table = put(tmp_path / "source", {}, example())
    names = {"FOLDER": tmp_path / "source", "OUT": tmp_path / "out", "MAP": table}
    names["FOLDER/w.safetensors"] = tmp_path / "source" / "w.safetensors"
    with pytest.raises(PlanError, match="--revision"):
        run(*(names.get(name, name) for name in command), "--revision", "v2")
    assert not (tmp_path / "out").exists()
