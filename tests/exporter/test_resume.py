"""`--skip-existing`: a stopped export goes on part by part, and only the one that was stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mtu_export import bundle, cli, exporter
from mtu_export.bundle import Bundle, verification
from mtu_export.exporter import assembly, manifest, options, part, resume
from mtu_export.spec import CheckpointError, MtuExportError, OutputExists, PlanError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def pipeline(atom_pipeline: Path) -> Path:
    return atom_pipeline


PARTS = ["text_encoder", "vae_encoder"]
"""Two small parts of `edit` are enough to stop between."""


def resolved(checkpoint: Path, out: Path, **overrides: Any) -> Any:
    settings = {
        "target": "onnx",
        "task": "edit",
        "components": PARTS,
        "bake_steps": [2],
        "height": 8,
    }
    return options.resolve(
        model=checkpoint, out=out, **{**settings, "skip_existing": True, **overrides}
    )


class Stopped(BaseException):
    """As Ctrl-C, but nobody else's."""


@pytest.fixture
def components(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the parts that are made, not taken."""
    names: list[str] = []
    true = part.make

    def make(job: part.Job, reference: Any) -> Any:
        names.append(job.name)
        return true(job, reference)

    monkeypatch.setattr(part, "make", make)
    return names


CHILD = """
import os, signal, sys
from pathlib import Path
from mtu_export import exporter
from mtu_export.exporter import part
from tests.exporter.test_resume import resolved

true = part.make

def make(job, reference):
    if job.name == "vae_encoder":
        os.kill(os.getpid(), signal.SIGKILL)
    return true(job, reference)

part.make = make
exporter.export(resolved(Path(sys.argv[1]), Path(sys.argv[2])))
"""
"""An export that is killed with -9 before its second part."""


def inode(folder: Path) -> int:
    return (folder / "text_encoder" / "model.onnx").stat().st_ino


def whole(exported: Bundle) -> None:
    """The bundle is as one that was made in one go."""
    assert [part.name for part in exported.parts] == PARTS
    assert all(
        verdict.passed
        for verdict in verification.verify_bundle(exported)
        if verdict.stage != "loop"
    )
    assert not (exported.folder / ".state").exists()
    assert [path.name for path in exported.folder.parent.iterdir()] == [exported.folder.name]


def test_a_killed_export_goes_on_where_it_was(
    pipeline: Path, tmp_path: Path, components: list[str]
) -> None:
    out = tmp_path / "out"
    root = Path(__file__).parents[2]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(pipeline), str(out)],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    left, _ = sorted(tmp_path.iterdir(), key=lambda path: path.suffix != ".partial")
    assert left.name.startswith(".out.")
    assert left.suffix == ".partial"
    before = inode(left)
    seen: list[str] = []

    def watch(stage: str) -> Any:
        seen.append(stage)
        return exporter.unwatched(stage)

    exported = exporter.export(resolved(pipeline, out), watch)
    assert components == ["vae_encoder"]
    assert "text_encoder: kept from the interrupted export" in seen
    assert inode(out) == before
    whole(exported)

    # complete: it returns at once, and only to the plan that made it
    components.clear()
    again = exporter.export(resolved(pipeline, out, memory=0.001))
    assert (components, again.manifest) == ([], exported.manifest)
    for arguments in ({"seed": 1}, {"batch": 2}, {"bake_steps": [4]}, {"scheme": "int8"}):
        with pytest.raises(PlanError, match="bundle of another plan or version; choose another -o"):
            exporter.export(resolved(pipeline, out, **arguments))
    assert components == []
    assert bundle.read(out).manifest == exported.manifest


def test_a_complete_bundle_of_another_version_is_refused(
    pipeline: Path, tmp_path: Path, components: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support import handmade

    out = handmade.write(tmp_path / "out")
    with pytest.raises(PlanError, match="another plan or version"):
        exporter.export(resolved(pipeline, out))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("x")
    with pytest.raises(OutputExists):
        exporter.export(resolved(pipeline, tmp_path / "mine"))
    assert (tmp_path / "mine" / "diary.txt").read_text() == "x"
    one = resolved(pipeline, out)
    identity, versions = manifest.identity(one), manifest.versions(one)
    fingerprint = resume.fingerprint(one, identity, versions)
    assert fingerprint == resume.fingerprint(
        resolved(pipeline, out, memory=9.0), identity, versions
    )
    assert fingerprint != resume.fingerprint(one, identity, {**versions, "torch": "0"})
    assert fingerprint != resume.fingerprint(one, {**identity, "source_sha256": "0"}, versions)
    assert components == []


def fingerprint(one: Any) -> str:
    return resume.fingerprint(one, manifest.identity(one), manifest.versions(one))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "text_encoder/model.safetensors",
        "vae/config.json",
        "LICENSE",
    ],
)
def test_a_source_that_was_changed_is_another(pipeline: Path, tmp_path: Path, name: str) -> None:
    """The text encoder of `sr` is not exported, but its prompt's embeddings come from it."""
    source = Path(shutil.copytree(pipeline, tmp_path / "source"))
    (source / "LICENSE").write_text("mine")
    (source / "tokenizer" / "tokenizer_config.json").write_text("{}\n")
    one = resolved(source, tmp_path / "out", task="sr", components=())
    before = fingerprint(one)
    assert before == fingerprint(one)
    flip(source / name)
    assert before != fingerprint(one)


def test_the_same_export_from_elsewhere_is_the_same(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint and a LoRA count by content: neither by their paths nor by their names."""
    lora = tmp_path / "adapter_model.safetensors"
    lora.write_bytes(b"x")
    one = resolved(pipeline, tmp_path / "out", lora=[f"{lora}:0.5"])
    moved = Path(shutil.copytree(pipeline, tmp_path / "elsewhere" / "moved"))
    other = tmp_path / "elsewhere" / "other.safetensors"
    lora.rename(other)
    monkeypatch.chdir(tmp_path / "elsewhere")
    two = resolved(Path("moved"), Path("out"), lora=["other.safetensors:0.5"])
    other.rename(lora)
    before = fingerprint(one)
    lora.rename(other)
    assert fingerprint(two) == before
    assert fingerprint(resolved(moved, tmp_path / "x", lora=["other.safetensors:0.4"])) != before
    for words in ("#a:0.5", ":0.5,mid=1"):
        other_lora = resolved(moved, tmp_path / "x", lora=[f"other.safetensors{words}"])
        assert fingerprint(other_lora) != before
    assert fingerprint(resolved(moved, tmp_path / "x")) != before
    for change in ({"seed": 1}, {"batch": 2}, {"min_psnr": 9.0}, {"scheme": "int8"}):
        assert (
            fingerprint(resolved(moved, Path("out"), lora=["other.safetensors:0.5"], **change))
            != before
        )


def test_an_export_is_taken_up_with_a_checkpoint_that_was_moved(
    stopped: Path,
    pipeline: Path,
    tmp_path: Path,
    components: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = Path(shutil.copytree(stopped, tmp_path / "home"))
    shutil.copytree(pipeline, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    whole(exporter.export(resolved(Path("moved"), Path("home/out"))))
    assert (components, work.is_dir()) == ([], True)


def test_a_bug_is_not_taken_for_a_half_written_state(
    stopped: Path, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Path(shutil.copytree(stopped, tmp_path / "home"))
    monkeypatch.setattr(resume, "_decoded", lambda *arguments: {}["bug"])
    with pytest.raises(KeyError, match="bug"):
        exporter.export(resolved(pipeline, work / "out"))


def test_the_config_beside_a_lora_counts(pipeline: Path, tmp_path: Path) -> None:
    file, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    file.write_bytes(b"x")
    config.write_text("{}")
    one = resolved(pipeline, tmp_path / "out", lora=[str(file)])
    before = fingerprint(one)
    config.write_text('{"lora_alpha": 9}')
    assert before != fingerprint(one)


@pytest.fixture(scope="module")
def stopped(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the draft of an export that was stopped after its last part."""
    work = tmp_path_factory.mktemp("stopped") / "home"
    work.mkdir()
    patch = pytest.MonkeyPatch()

    def stop(*arguments: object) -> None:
        raise Stopped

    patch.setattr(assembly, "_write_bundle", stop)
    with pytest.raises(Stopped):
        exporter.export(resolved(pipeline, work / "out"))
    patch.undo()
    (left,) = work.iterdir()
    assert left.suffix == ".partial"
    assert {path.name for path in left.iterdir()} >= {".state", *PARTS}
    return work


def draft_of(work: Path) -> Path:
    (left,) = work.iterdir()
    return left


@pytest.mark.parametrize(
    ("damage", "again"),
    [
        (lambda d: (d / "text_encoder" / "model.onnx").write_bytes(b"x"), "text_encoder"),
        (lambda d: (d / "vae_encoder" / "config.json").unlink(), "vae_encoder"),
        (lambda d: shutil.rmtree(d / "vae_encoder"), "vae_encoder"),
        (lambda d: (d / ".state" / "text_encoder.json").write_text("{"), "text_encoder"),
        (lambda d: (d / ".state" / "text_encoder.json").write_text("{}"), "text_encoder"),
        (lambda d: (d / ".state" / "vae_encoder.safetensors").write_bytes(b"x"), "vae_encoder"),
        (lambda d: (d / ".state" / "mark").write_text("another"), "text_encoder"),
    ],
    ids=["changed", "fewer", "gone", "half", "empty", "arrays", "mark"],
)
def test_what_is_not_as_it_was_is_made_again(
    stopped: Path,
    pipeline: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Any,
    again: str,
) -> None:
    """The first part that is asked for is the damaged one; those before it were taken."""
    work = Path(shutil.copytree(stopped, tmp_path / "home"))
    damage(draft_of(work))
    asked: list[str] = []

    def make(job: part.Job, reference: Any) -> None:
        asked.append(job.name)
        raise Stopped

    monkeypatch.setattr(part, "make", make)
    with pytest.raises(Stopped):
        exporter.export(resolved(pipeline, work / "out"))
    assert asked == [again]


def test_a_part_that_was_changed_is_whole_again(
    stopped: Path, pipeline: Path, tmp_path: Path, components: list[str]
) -> None:
    work = Path(shutil.copytree(stopped, tmp_path / "home"))
    (draft_of(work) / "text_encoder" / "model.onnx").write_bytes(b"x")
    whole(exporter.export(resolved(pipeline, work / "out")))
    assert components == ["text_encoder"]


def test_another_plan_begins_anew(
    stopped: Path, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Path(shutil.copytree(stopped, tmp_path / "home"))

    def make(job: part.Job, reference: Any) -> None:
        assert not (job.folder / "text_encoder").exists()
        raise Stopped

    monkeypatch.setattr(part, "make", make)
    with pytest.raises(Stopped):
        exporter.export(resolved(pipeline, work / "out", seed=5))
    assert len(list(work.iterdir())) == 2  # what was stopped first still waits for its plan
    with pytest.raises(Stopped):  # without the word nothing is kept
        exporter.export(resolved(pipeline, work / "out", skip_existing=False))
    assert list(work.iterdir()) == []


def test_a_failure_keeps_the_finished_parts_too(
    stopped: Path, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Path(shutil.copytree(stopped, tmp_path / "home"))
    monkeypatch.setattr(manifest, "describe", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        exporter.export(resolved(pipeline, work / "out"))
    assert (draft_of(work) / ".state" / "vae_encoder.json").is_file()


def test_a_stop_after_the_parts_goes_on_too(
    stopped: Path,
    pipeline: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    components: list[str],
) -> None:
    """When tokenizer and goldens are written, as while the loops are proved."""
    work, write = Path(shutil.copytree(stopped, tmp_path / "home")), bundle.write_manifest

    def stop(*arguments: Any) -> None:
        monkeypatch.setattr(bundle, "write_manifest", write)
        raise Stopped

    monkeypatch.setattr(bundle, "write_manifest", stop)
    with pytest.raises(Stopped):
        exporter.export(resolved(pipeline, work / "out"))
    assert (draft_of(work) / "tokenizer").is_dir()
    whole(exporter.export(resolved(pipeline, work / "out")))
    assert components == []


def test_a_source_that_changes_meanwhile_is_refused(
    stopped: Path, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copytree(pipeline, tmp_path / "source"))
    true, work = part.make, tmp_path / "home"
    work.mkdir()

    def make(job: part.Job, reference: Any) -> Any:
        (source / "vae" / "config.json").touch()
        return true(job, reference)

    monkeypatch.setattr(part, "make", make)
    plan = resolved(source, work / "out", target="reference", skip_existing=False)
    with pytest.raises(CheckpointError, match="was changed while it was exported"):
        exporter.export(plan)
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("keep", [True, False])
def test_the_message_of_ctrl_c_says_how_to_go_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    keep: bool,
) -> None:
    def stop(*command: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(exporter, "export", stop)
    command = ["mtu-export", "onnx", "--task", "sr", *(["--skip-existing"] if keep else [])]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        cli.main()
    (line,) = capfd.readouterr().err.splitlines()
    assert end.value.code == 130
    expected = "finished parts are kept: the same command with --skip-existing continues"
    assert line == f"error: interrupted; {expected if keep else 'nothing was written'}"


def test_force_and_skip_existing_contradict_one_another(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(MtuExportError, match="--skip-existing keeps what --force replaces"):
        resolved(pipeline, tmp_path / "out", force=True)


def test_code_that_no_export_runs_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("exporter", "bench"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "module.py").write_text("1", "utf-8")
    monkeypatch.setattr(resume.mtu_export, "__file__", str(tmp_path / "__init__.py"))
    before = resume._code()
    (tmp_path / "bench" / "module.py").write_text("2", "utf-8")
    assert resume._code() == before
    (tmp_path / "exporter" / "module.py").write_text("2", "utf-8")
    assert resume._code() != before
