"""Where a checkpoint is: folders, names on the hub, and links that may lead out of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mtu_export import checkpoint
from mtu_export.models.mtu import config as mtu_config
from mtu_export.spec import CheckpointError


def test_places_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no unet/ folder"):
        mtu_config.read_config(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        checkpoint.locate(tmp_path / "none")
    with pytest.raises(CheckpointError, match="neither a folder nor reachable"):
        checkpoint.locate("nobody/nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        checkpoint.locate(tmp_path / "file")
    (tmp_path / "unet").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        mtu_config.read_config(tmp_path)
    (tmp_path / "unet" / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        mtu_config.read_config(tmp_path)


def test_a_hub_id_is_read_from_the_hub_cache(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    repository = tmp_path / "models--someone--shapes-mtu"
    shutil.copytree(tiny, repository / "snapshots" / "abc123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert checkpoint.locate("someone/shapes-mtu") == repository / "snapshots" / "abc123"
    (repository / "refs" / "v2").write_text("def456")
    shutil.copytree(tiny, repository / "snapshots" / "def456")
    located = checkpoint.locate("someone/shapes-mtu", "v2")
    assert located == repository / "snapshots" / "def456"


_REPOSITORY = """LICENSE model_index.json scheduler/scheduler_config.json tokenizer/merges.txt
unet/config.json unet/diffusion_pytorch_model.safetensors
unet/diffusion_pytorch_model.fp16.safetensors unet/diffusion_pytorch_model.non_ema.safetensors
unet/diffusion_pytorch_model-00001-of-00002.safetensors unet/diffusion_pytorch_model.bin
vae/diffusion_pytorch_model.safetensors vae/diffusion_pytorch_model.fp16.safetensors
text_encoder/model.safetensors text_encoder/model.fp16.safetensors
text_encoder_2/model.safetensors safety_checker/model.safetensors v1-5-pruned.safetensors
v1-5-pruned-emaonly.ckpt README.md"""


@pytest.mark.parametrize("pipeline", [True, False])
def test_of_a_pipeline_on_the_hub_only_what_is_read_is_fetched(
    pipeline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the hub's own filter, over the files of a repository like that of SD 1.5."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    names = _REPOSITORY.split() if pipeline else ["a/b.safetensors", "c.safetensors", "d.bin"]

    def fetch(
        _: str,
        revision: str | None,
        allow_patterns: list[str],
        ignore_patterns: list[str] | None = None,
    ) -> str:
        assert revision == "v2"
        for name in filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    checkpoint.locate("someone/shapes-mtu", "v2")
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    fetched = {path.relative_to(tmp_path).as_posix() for path in files}
    if pipeline:
        unwanted = ("fp16", "non_ema", "safety", "pruned", ".bin", ".md")
        assert fetched == {name for name in names if not any(part in name for part in unwanted)}
    else:
        assert fetched == set(names[:2])


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "x" * 300, "a/" * 3000, "\0"])
def test_impossible_names_of_a_checkpoint_are_one_line(name: str) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        checkpoint.locate(name)


def test_a_repository_of_variants_alone_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    names = ["unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors"]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: names)
    with pytest.raises(CheckpointError, match="in the variant fp16 alone: give --variant fp16"):
        checkpoint.locate("someone/half")


def test_links_may_lead_to_the_blobs_of_a_hub_snapshot_alone(tmp_path: Path) -> None:
    from mtu_export.checkpoint import stays_inside

    crafted = tmp_path / "snapshots" / "evil"
    crafted.mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("x")
    (crafted / "LICENSE").symlink_to("../../secret.txt")
    assert not stays_inside(crafted / "LICENSE", crafted)
    assert checkpoint.licences(crafted) == []
    repository = tmp_path / "models--someone--model"
    snapshot = repository / "snapshots" / "abc"
    (snapshot / "unet").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "1f").write_text("x")
    (repository / "secret.txt").write_text("x")
    (snapshot / "LICENSE").symlink_to("../../blobs/1f")
    (snapshot / "unet" / "config.json").symlink_to("../../../blobs/1f")
    (snapshot / "LICENSE.md").symlink_to("../../secret.txt")
    assert checkpoint.licences(snapshot) == [snapshot / "LICENSE"]
    assert stays_inside(snapshot / "unet" / "config.json", snapshot)
    assert stays_inside(snapshot / "unet" / "config.json", snapshot / "unet")


def test_a_mistyped_folder_is_not_looked_up_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def fetch(*_: object, **__: object) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match="'models/shapse': the folder 'models' holds no 'shapse'"
    ):
        checkpoint.locate("models/shapse")
