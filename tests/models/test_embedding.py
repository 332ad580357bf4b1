"""Files of trained tokens: forms, refusals in one line, and the rows that they become."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mtu_export.models.pipeline import embedding
from mtu_export.spec import CheckpointError, MtuExportError, PlanError

SD = {"text_encoder": 16}
XL = {"text_encoder": 16, "text_encoder_2": 24}


def write(path: Path, **shapes: Any) -> Path:
    """A file of random tensors of these shapes; ``{name: tensor}`` for other names."""
    tensors = {n: torch.randn(s) if isinstance(s, tuple) else s for n, s in shapes.items()}
    save_file(tensors, path)
    return path


def refused(argument: object, kind: type[MtuExportError], widths: Mapping[str, Any] = SD) -> str:
    with pytest.raises(kind) as caught:
        embedding.read(str(argument), widths)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


def test_forms(tmp_path: Path) -> None:
    file = write(tmp_path / "cat.safetensors", **{"<cat>": (16,)})
    assert embedding.read(str(file), SD).tokens == ("<cat>",)
    assert embedding.read(f"{file}:<dog>", SD).tokens == ("<dog>",)
    file = write(tmp_path / "three.safetensors", **{"<a:b>": (3, 16)})
    made = embedding.read(str(file), SD)
    assert made.tokens == ("<a:b>", "<a:b>_1", "<a:b>_2")
    assert made.tensors == {"text_encoder": "<a:b>"}
    assert embedding.read(f"{file}:<c:d>", SD).tokens[0] == "<c:d>"
    half = torch.randn(2, 16).bfloat16()
    file = write(tmp_path / "EasyNegative.safetensors", emb_params=half)
    assert embedding.read(str(file), SD).tokens == ("EasyNegative", "EasyNegative_1")
    file = write(tmp_path / "web.safetensors", clip_l=(2, 16), clip_g=(2, 24))
    made = embedding.read(f"{file}:<web>", XL)
    assert made.tokens == ("<web>", "<web>_1")
    assert made.tensors == {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    assert len(made.sha256) == 64


def test_a_colon_in_the_name_of_a_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a:b.safetensors", **{"<cat>": (16,)})
    assert embedding.read(str(file), SD).tokens == ("<cat>",)
    assert embedding.read(f"{file}:<dog>", SD).tokens == ("<dog>",)


def test_files_that_are_none(tmp_path: Path) -> None:
    for word in ("", ":", "none.safetensors", "none:<cat>", "\0", ".", "x" * 5000):
        assert refused(word, PlanError).startswith("--embedding: no file ")
    for name, content in (("a.pt", b"PK\3\4"), ("a.bin", b"\x80\2}q")):
        (tmp_path / name).write_bytes(content)
        assert refused(tmp_path / name, CheckpointError) == (
            f"{tmp_path / name} is a pickle: refused; where you trust it, torch.load it and "
            "save_file({'emb_params': vectors}) it with safetensors"
        )
    disguised = tmp_path / "b.safetensors"
    disguised.write_bytes(b"PK\3\4" + bytes(64))
    assert refused(disguised, CheckpointError) == (
        f"{disguised} is a pickle, not safetensors: refused"
    )
    (tmp_path / "zero.safetensors").touch()
    assert "is not a whole safetensors file" in refused(
        tmp_path / "zero.safetensors", CheckpointError
    )
    file = tmp_path / "x.safetensors"
    save_file({}, file)
    assert refused(file, CheckpointError) == f"{file} is empty: it holds no tensor"
    lora = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (2, 16)}
    for tensors in (lora, {"unet.a.lora_A.weight": (2, 4), "unet.a.lora_B.weight": (4, 2)}):
        write(file, **tensors)
        assert refused(file, CheckpointError) == (
            f"{file} is a LoRA, no embedding: give it with --lora"
        )
    write(file, a=(16,), b=(16,))
    assert refused(file, CheckpointError) == (
        f"{file} is no embedding: it holds 2 tensors (a, b, ...); legal: one tensor, or clip_l and "
        "clip_g"
    )


def test_shapes_and_values(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    for shape in ((1, 2, 16), (0, 16)):
        write(file, emb_params=shape)
        line = refused(file, CheckpointError)
        assert line == f"{file}: tensor 'emb_params' is {list(shape)}; legal: [d] or [n, d]"
    write(file, emb_params=(76, 16))
    line = refused(file, CheckpointError)
    assert line == f"{file}: tensor 'emb_params' has 76 vectors; a prompt holds 75"
    write(file, emb_params=torch.full((16,), float("nan")))
    assert refused(file, CheckpointError) == f"{file}: tensor 'emb_params' holds NaN or Inf"
    write(file, emb_params=torch.ones(16, dtype=torch.int64))
    assert "has dtype 'I64'" in refused(file, CheckpointError)
    write(file, clip_l=(2, 16), clip_g=(1, 24))
    assert "clip_l and clip_g must have as many vectors" in refused(file, CheckpointError, XL)


def test_an_embedding_of_another_model(tmp_path: Path) -> None:
    file = write(tmp_path / "x.safetensors", emb_params=(2, 1024))
    assert refused(file, PlanError, {"text_encoder": 768}) == (
        f"--embedding {file}: vectors of 1024 numbers, text_encoder of this model takes 768; 1024 "
        "is that of Stable Diffusion 2.x (OpenCLIP ViT-H/14)"
    )
    assert refused(file, PlanError) == (
        f"--embedding {file}: vectors of 1024 numbers, text_encoder of this model takes 16; 1024 "
        "is that of Stable Diffusion 2.x (OpenCLIP ViT-H/14)"
    )
    write(file, emb_params=(2, 768))
    assert refused(file, PlanError, XL) == (
        f"--embedding {file} is for one text encoder, that of Stable Diffusion 1.x (CLIP ViT-L/14);"
        " SDXL takes a pair, clip_l and clip_g"
    )
    write(file, clip_l=(2, 16), clip_g=(2, 25))
    assert refused(file, PlanError, XL) == (
        f"--embedding {file}: vectors of 25 numbers, text_encoder_2 of this model takes 24"
    )
    assert refused(file, PlanError) == (
        f"--embedding {file} is a pair for SDXL (clip_l, clip_g); this model has one text encoder"
    )


def test_tokens_that_are_none(tmp_path: Path) -> None:
    file = write(tmp_path / "x.safetensors", emb_params=(16,))
    for token in ("", "a cat", "<cat>\t", "a\u00a0b", "a\x07b"):
        line = refused(f"{file}:{token}", PlanError)
        assert "is no token: it must be printable and hold no space; name one" in line
    assert "at most 100 characters, got 101" in refused(f"{file}:{'x' * 101}", PlanError)
    spaced = write(tmp_path / "my cat.safetensors", emb_params=(16,))
    assert "'my cat' is no token" in refused(spaced, PlanError)
    two = write(tmp_path / "y.safetensors", emb_params=(2, 16))
    read = [embedding.read(word, SD) for word in (f"{two}:<cat>", f"{file}:<cat>_1")]
    with pytest.raises(PlanError, match=r"have one token, '<cat>_1'; name another: x\.safetensors"):
        embedding.refuse_repeated(read)


def test_rows_are_set_by_id(tmp_path: Path) -> None:
    """Also where the text encoder has more rows than its tokenizer tokens."""
    vectors = torch.randn(2, 16)
    file = write(tmp_path / "cat.safetensors", **{"<cat>": vectors})
    made = embedding.read(str(file), SD)
    module = nn.Module()
    module.embeddings = nn.Module()
    module.embeddings.token_embedding = nn.Embedding(6, 16)
    old = module.embeddings.token_embedding.weight.data.clone()
    embedding.embed(module, "text_encoder", [made], {"<cat>": 5, "<cat>_1": 7})
    new = module.embeddings.token_embedding.weight
    assert new.shape == (8, 16)
    assert torch.equal(new[:5], old[:5])
    assert torch.equal(new[[5, 7]], vectors)
    assert not new[6].any()
