"""Weights on disk that are damaged, hostile or not safetensors."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import pytest
import torch

from mtu_export import checkpoint
from mtu_export.checkpoint import config
from mtu_export.models import mtu
from mtu_export.spec import CheckpointError
from mtu_export.testing import architectures

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def unet(tiny: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny / "unet", tmp_path / "unet")
    return tmp_path / "unet"


def test_headers_match_the_file(unet: Path) -> None:
    headers = checkpoint.headers(unet)
    header = headers["conv_in.edit.weight"]
    assert (header.dtype, header.shape) == ("F32", (32, 8, 3, 3))
    assert checkpoint.tensor(headers, "conv_in.edit.weight").shape == (32, 8, 3, 3)


def test_a_pickle_is_refused_and_never_opened(unet: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit('opened')",)

    (unet / WEIGHTS).unlink()
    (unet / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=r"model\.bin is a pickle: refused"):
        checkpoint.headers(unet)
    (unet / "diffusion_pytorch_model.bin").rename(unet / WEIGHTS)
    with pytest.raises(CheckpointError, match="is a pickle, not safetensors"):
        checkpoint.headers(unet)
    torch.save({"a": torch.zeros(1)}, unet / WEIGHTS)
    with pytest.raises(CheckpointError, match="is a pickle, not safetensors"):
        checkpoint.headers(unet)


@pytest.mark.parametrize("keep", [0, 7, 9, 500, -1])
def test_a_cut_file_is_refused(unet: Path, keep: int) -> None:
    data = (unet / WEIGHTS).read_bytes()
    (unet / WEIGHTS).write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match=r"whole safetensors|is cut|damaged"):
        checkpoint.headers(unet)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F8", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32"},
        7,
    ],
)
def test_absurd_headers_are_refused(unet: Path, entry: object) -> None:
    header = json.dumps({"a": entry}).encode()
    (unet / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(CheckpointError, match="is not a whole safetensors file: Error while"):
        checkpoint.headers(unet)


def test_a_header_may_begin_as_a_pickle_does(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / WEIGHTS
    save_file({"a": torch.ones(1)}, path, metadata={"pad": ""})
    short = int.from_bytes(path.read_bytes()[:8], "little")
    save_file({"a": torch.ones(1)}, path, metadata={"pad": "x" * (128 - short)})
    assert path.read_bytes()[:1] == b"\x80"
    assert checkpoint.headers(tmp_path)["a"].shape == (1,)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin"])
def test_an_index_cannot_leave_the_folder(unet: Path, name: str) -> None:
    index = unet / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}), "utf-8")
    with pytest.raises(CheckpointError, match="shard"):
        checkpoint.headers(unet)


def test_places_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no unet/ folder"):
        checkpoint.read_config(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        checkpoint.locate(tmp_path / "none")
    with pytest.raises(CheckpointError, match="neither a folder nor reachable"):
        checkpoint.locate("nobody/nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        checkpoint.locate(tmp_path / "file")
    (tmp_path / "unet").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        checkpoint.read_config(tmp_path)
    (tmp_path / "unet" / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        checkpoint.read_config(tmp_path)


def test_a_dense_unet_folder_is_told_from_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(
        CheckpointError, match=r"the UNet is dense .* mtu-export upcycle SOURCE OUT"
    ):
        checkpoint.read_config(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_head_dim", -4),
        ("attention_head_dim", [4, 0]),
        ("sample_size", "16"),
        ("sample_size", [16, True]),
        ("layers_per_block", 1.5),
        ("norm_num_groups", True),
        ("transformer_layers_per_block", [[1, "2"]]),
    ],
)
def test_sizes_are_positive_integers(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"{key}: must be a positive integer or a list"):
        checkpoint.check_sizes({key: value})


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

    def fetch(_: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert revision == "v2"
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
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


def test_shards_hold_no_more_than_asked(tmp_path: Path) -> None:
    tensors = [(f"t{i}", torch.full((100,), float(i))) for i in range(7)]
    checkpoint.write(tmp_path / "w", {"a": 1}, iter(tensors), shard_bytes=900)
    headers = checkpoint.headers(tmp_path / "w")
    assert len({header.file for header in headers.values()}) == 4
    assert all(torch.equal(checkpoint.tensor(headers, name), value) for name, value in tensors)


def test_stock_defaults_are_those_of_diffusers() -> None:
    import inspect

    from diffusers import UNet2DConditionModel

    stock = inspect.signature(UNet2DConditionModel.__init__).parameters
    for key, value in checkpoint.STOCK_DEFAULTS.items():
        default = stock[key].default
        assert (list(default) if isinstance(default, tuple) else default) == value


@pytest.mark.parametrize(
    "change",
    [
        {"layers_per_block": 10**9},
        {"block_out_channels": [10**12]},
        {"block_out_channels": "wide"},
        {"block_out_channels": []},
        {"in_channels": True},
        {"cross_attention_dim": [1, 2]},
        {"num_experts": 10**6},
        {"norm_num_groups": 10**30},
    ],
)
def test_absurd_sizes_are_refused_at_once(unet: Path, change: dict[str, object]) -> None:
    path = unet / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}), "utf-8")
    with pytest.raises(CheckpointError, match=next(iter(change))):
        checkpoint.read_config(unet.parent)


# ------------------------------------------------------------------- what mutated checkpoints found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_head_dim": -4}, "attention_head_dim: must be a positive integer"),
        ({"downsample_padding": 10**6}, "does not describe a UNet"),
        ({"norm_eps": "x"}, "norm_eps: must be a number"),
        ({"freq_shift": "x"}, "freq_shift: must be a number"),
        ({"flip_sin_to_cos": "yes"}, "flip_sin_to_cos: must be true or false"),
        ({"class_embed_type": "timestep"}, "class_embed_type: must be null; others need an input"),
        ({"num_class_embeds": 10}, "num_class_embeds: must be null; .*, got 10"),
        ({"time_cond_proj_dim": 16}, "time_cond_proj_dim: must be null; others need an input"),
        ({"encoder_hid_dim": 32}, "encoder_hid_dim: must be null; others need an input"),
        ({"dual_cross_attention": True}, "dual_cross_attention: must be false; others need an"),
        ({"addition_embed_type": "text"}, 'must be null or "text_time"; others need an input'),
        ({"addition_embed_type": "text_time"}, "must be the width of the pooled text"),
        ({"layers_per_block": 128, "transformer_layers_per_block": 128}, "absurdly large"),
        ({"_class_name": "x\n" * 9000}, "is not that of an MTU checkpoint"),
    ],
)
def test_what_no_forward_pass_can_run_is_refused_before_weights(
    unet: Path, change: dict[str, object], message: str
) -> None:
    path = unet / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}), "utf-8")
    with pytest.raises(CheckpointError, match=message) as caught:
        mtu.load(unet.parent)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_an_output_of_another_shape_is_refused(unet: Path) -> None:
    """The weights fit, the picture does not come out as large as it went in."""
    from safetensors.torch import load_file, save_file

    path = unet / "config.json"
    config = {**json.loads(path.read_text()), "conv_out_kernel": 4}
    path.write_text(json.dumps(config), "utf-8")
    tensors = load_file(unet / WEIGHTS)
    tensors["conv_out.weight"] = torch.zeros(4, 32, 4, 4)
    save_file(tensors, unet / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"its output is \[1, 4, 3, 3\], not"):
        mtu.load(unet.parent)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "key 'a' appears twice"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        ('{"a": 1e999}', "1e999 is not a finite double"),
        ('{"a": NaN}', "NaN is not a finite double"),
        ("{" + '"a": 1' + "0" * 5000 + "}", "cannot be read as JSON"),
    ],
)
def test_json_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read_json(tmp_path / "x.json")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(CheckpointError, match="is not a file"):
        checkpoint.read_json(tmp_path / "x.json")


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "x" * 300, "a/" * 3000, "\0"])
def test_impossible_names_of_a_checkpoint_are_one_line(name: str) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        checkpoint.locate(name)


def test_a_damaged_header_is_one_printable_line(unet: Path) -> None:
    entry = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    for text, message in (
        ("{" + entry.replace('"a"', r'"a\u001b[2J"') + "}", "is not a tensor name"),
        ("{" + entry.replace("[1]", "[true]") + "}", "not a whole safetensors file"),
        ("{" + entry.replace("F32", r"F\u001b32") + "}", "not a whole safetensors file"),
        ("{" + entry.replace("F32", "I32") + "}", "'a' has dtype 'I32'; legal: F64"),
    ):
        header = text.encode()
        (unet / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
        with pytest.raises(CheckpointError, match=message) as caught:
            checkpoint.headers(unet)
        assert str(caught.value).isprintable()


def test_an_index_says_where_every_tensor_is(tmp_path: Path) -> None:
    tensors = [(f"t{i}", torch.full((100,), float(i))) for i in range(3)]
    checkpoint.write(tmp_path / "w", {"a": 1}, iter(tensors), shard_bytes=500)
    path = tmp_path / "w" / f"{WEIGHTS}.index.json"
    index = json.loads(path.read_text("utf-8"))
    files = sorted(set(index["weight_map"].values()))
    for change, message in (
        ({"t0": files[1]}, "weight_map puts tensor 't0' in"),
        ({"t9": files[0]}, "tensor 't9' .* it is in no file"),
        ({"t0": "é" * 190 + ".safetensors"}, "is not a safetensors file here"),
        ({"t0": 4}, "is not a safetensors file here"),
        ({"t0": "\0.safetensors"}, "is not a safetensors file here"),
    ):
        changed = {**index, "weight_map": index["weight_map"] | change}
        path.write_text(json.dumps(changed), "utf-8")
        with pytest.raises(CheckpointError, match=message):
            checkpoint.headers(tmp_path / "w")


@pytest.mark.parametrize("scale", ["x", None, True, -1, 1e30])
def test_a_vae_without_a_scale_is_refused_early(unet: Path, scale: object) -> None:
    (unet.parent / "vae").mkdir()
    text = json.dumps({"scaling_factor": scale})
    (unet.parent / "vae" / "config.json").write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match="scaling_factor must be a positive number"):
        checkpoint.read_config(unet.parent)


# --------------------------------------------------------------- what people bring: names of files


def git_lfs_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "utf-8")


def test_a_git_lfs_pointer_is_called_one(unet: Path) -> None:
    git_lfs_pointer(unet / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"safetensors is a git-lfs pointer.*git lfs pull"):
        checkpoint.headers(unet)
    git_lfs_pointer(unet / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json is a git-lfs pointer"):
        checkpoint.read_config(unet.parent)


@pytest.mark.parametrize("pickle_beside", [False, True])
@pytest.mark.parametrize("stem", [checkpoint.WEIGHTS, checkpoint.TEXT_WEIGHTS])
def test_a_variant_is_named_with_what_to_do(tmp_path: Path, stem: str, pickle_beside: bool) -> None:
    if pickle_beside:
        (tmp_path / f"{stem}.bin").touch()
    (tmp_path / f"._{stem}.fp16.safetensors").touch()
    (tmp_path / f"{stem}.fp16.safetensors").touch()
    message = rf"variant fp16: rename {stem}\.fp16\.safetensors to {stem}\.safetensors"
    with pytest.raises(CheckpointError, match=message):
        checkpoint.headers(tmp_path, stem)


@pytest.mark.parametrize("old", [False, True])
def test_a_sharded_variant_is_named(tmp_path: Path, old: bool) -> None:
    """As diffusers itself writes it, and as it did before 0.28."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_config({**architectures.ARCHITECTURES["tiny"]})
    assert isinstance(unet, UNet2DConditionModel)
    unet.save_pretrained(tmp_path, variant="fp16", max_shard_size="300KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    for path in files if old else ():
        head, _, shard = path.name.removesuffix(".safetensors").partition(".fp16-")
        path.rename(tmp_path / f"{head}-{shard}.fp16.safetensors")
    with pytest.raises(CheckpointError, match="has the variant fp16: load it with variant='fp16'"):
        checkpoint.headers(tmp_path)


def test_a_repository_of_variants_alone_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    names = ["unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors"]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: names)
    with pytest.raises(CheckpointError, match="in the variant fp16 alone: load it in diffusers"):
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


def test_what_training_leaves_in_a_config_is_ignored(unet: Path) -> None:
    """As diffusers' EMA writer leaves it."""
    from diffusers import UNet2DConditionModel
    from diffusers.training_utils import EMAModel

    tiny = {**architectures.ARCHITECTURES["tiny"]}
    model = UNet2DConditionModel.from_config(tiny)
    assert isinstance(model, UNet2DConditionModel)
    ema = EMAModel(model.parameters(), model_cls=UNet2DConditionModel, model_config=model.config)
    ema.save_pretrained(str(unet.parent / "ema"))
    written = json.loads((unet.parent / "ema" / "config.json").read_text("utf-8"))
    keys = {key for key in written if not key.startswith("_")} - set(mtu.STOCK_KEYS)
    assert keys == set(config.TRAINING_KEYS) - {"gradient_checkpointing"}
    path = unet / "config.json"
    left = {key: written.get(key, False) for key in config.TRAINING_KEYS}
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **left}), "utf-8")
    mtu.load(unet.parent)


# ------------------------------------------------------------------------- the parts of a pipeline


def test_an_index_names_no_part_that_is_absent_but_the_optional_ones(tmp_path: Path) -> None:
    """Optional are those that diffusers runs without; the hub's lack their weights here."""
    from mtu_export.checkpoint import pipeline_files

    optional = ("safety_checker", "feature_extractor", "image_encoder")
    needed = ("vae", "text_encoder", "tokenizer", "scheduler")
    entries = {name: ["library", "Class"] for name in ("unet", *needed, *optional)}
    index = {**entries, "_class_name": "X", "_ignore_files": ["a"], "text_encoder_2": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "flag": False}), "utf-8")
    for name in ("unet", *needed):
        message = f"has no {name}/, which its model_index.json names; complete the copy or download"
        with pytest.raises(CheckpointError, match=message):
            pipeline_files.read(tmp_path)
        (tmp_path / name).mkdir()
    expected = {**{name: entries[name] for name in needed}, "flag": False}
    assert pipeline_files.read(tmp_path) == expected
    for name in optional:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert pipeline_files.read(tmp_path) == {**expected, "feature_extractor": ["library", "Class"]}
    for name in optional:
        (tmp_path / name / "model.safetensors").touch()
    assert pipeline_files.read(tmp_path).keys() == {*needed, *optional, "flag"}
