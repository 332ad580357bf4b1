"""``--embedding`` and ``--clip-skip``: what an export records, and what it refuses before work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from mtu_export import checkpoint, exporter
from mtu_export.bundle import tokenizer
from mtu_export.exporter import assembly
from mtu_export.exporter.options import resolve
from mtu_export.spec import MtuExportError, PlanError, Unsupported
from mtu_export.testing.dense import write_dense


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dense("tiny", tmp_path_factory.mktemp("dense") / "sd")


def embedding(folder: Path, count: int = 2, width: int = 32, name: str = "<cat>") -> str:
    folder.mkdir(exist_ok=True)
    save_file({name: torch.randn(count, width)}, folder / "cat.safetensors")
    return str(folder / "cat.safetensors")


def refused(kind: type[MtuExportError], **options: Any) -> str:
    with pytest.raises(kind) as caught:
        exporter.export(resolve(target="reference", **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_a_bundle_says(dense: Path, tmp_path: Path) -> None:
    file = embedding(tmp_path, 3)
    bundle = exporter.export(
        resolve(
            target="reference",
            model=dense,
            components=["text_encoder"],
            embedding=file,
            clip_skip=1,
            out=tmp_path / "b",
        )
    )
    source = bundle.manifest.to_json()["source"]
    (record,) = source["embeddings"]
    assert record == {
        "name": "cat.safetensors",
        "sha256": record["sha256"],
        "token": "<cat>",
        "vectors": 3,
    }
    assert source["clip_skip"] == 1
    card = (tmp_path / "b" / "README.md").read_text("utf-8")
    assert "in the prompt: `<cat>` (3 vectors, cat.safetensors)." in card
    assert "Clip skip 1, as diffusers counts: the text encoder gives the states of layer 2" in card
    ids, cut = tokenizer.load(tmp_path / "b" / "tokenizer").encode("a <cat>!")
    assert (ids[0, 2:5].tolist(), cut) == ([864, 865, 866], "")
    stock = CLIPTokenizer.from_pretrained(tmp_path / "b" / "tokenizer")
    assert stock("<cat>_2").input_ids == [862, 866, 863]


def test_a_bundle_without_them_has_no_word_of_them(dense: Path, tmp_path: Path) -> None:
    options = {"target": "reference", "model": dense, "components": ["text_encoder"]}
    plan = resolve(**options, out=tmp_path / "b")
    assert not {"embeddings", "clip_skip"} & {*exporter.export(plan).manifest.to_json()["source"]}


def test_another_embedding_is_another_plan(dense: Path, tmp_path: Path) -> None:
    first, second = embedding(tmp_path / "1"), embedding(tmp_path / "2")
    common = {"target": "reference", "model": dense, "components": ["text_encoder"]}
    out = tmp_path / "b"
    plan = resolve(**common, embedding=first, out=out)
    made = exporter.export(plan)
    again = resolve(**common, embedding=first, out=out, skip_existing=True)
    assert exporter.export(again).manifest == made.manifest
    for change in (
        {"embedding": second},
        {"embedding": f"{first}:<dog>"},
        {},
        {"embedding": first, "clip_skip": 1},
    ):
        other = resolve(**common, **change, out=out, skip_existing=True)
        with pytest.raises(PlanError, match="is the bundle of another plan"):
            exporter.export(other)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("cat", "tokenizer has a token 'cat' already; name another: cat.safetensors:<name>"),
        ("<|endoftext|>", "tokenizer has a token '<|endoftext|>' already"),
        ("!", "tokenizer has a token '!' already"),
    ],
)
def test_tokens_that_are_there(dense: Path, tmp_path: Path, token: str, message: str) -> None:
    pieces = checkpoint.read_json(dense / "tokenizer" / "vocab.json")
    token = token if token in pieces else next(piece for piece in pieces if piece.isalpha())
    message = message.replace("'cat'", repr(token))
    word = f"{embedding(tmp_path)}:{token}"
    line = refused(PlanError, model=dense, embedding=word, out=tmp_path / "b")
    assert message in line
    assert not (tmp_path / "b").exists()


def test_a_token_with_the_name_of_a_vector(dense: Path, tmp_path: Path) -> None:
    """Together they would read as one token of two vectors."""
    files = [embedding(tmp_path / name, 1) for name in "12"]
    words = [f"{files[0]}:<cat>", f"{files[1]}:<cat>_1"]
    line = refused(PlanError, model=dense, embedding=words, out=tmp_path / "b")
    assert "tokenizer does not read '<cat>' as a token of 1 vector; name another" in line


def test_layers_that_are_not_there(
    dense: Path, make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    line = refused(PlanError, model=dense, clip_skip=2)
    assert line == "--clip-skip 2: text_encoder has 2 layers; legal: 1 to 1"
    xl = make_tiny("tiny-sdxl", whole=True)
    line = refused(PlanError, model=xl, task="t2i", clip_skip=2)
    assert line == "--clip-skip 2: text_encoder has 3 layers; legal: 1 to 1"
    line = refused(PlanError, model=make_tiny("atom", whole=True), task="t2i", clip_skip=1)
    assert line == "--clip-skip 1: text_encoder has 1 layers; legal: none"
    for number in (0, 128, -1):
        line = refused(PlanError, model=dense, clip_skip=number)
        assert line == f"--clip-skip must be from 1 to 127, got {number}"


def test_where_they_have_no_place(
    dense: Path, make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    file = embedding(tmp_path)
    bare = make_tiny("atom")
    assert refused(PlanError, model=bare, task="t2i", embedding=file) == (
        f"--embedding: {bare} has no text_encoder/"
    )
    for flag, change in (("--embedding", {"embedding": file}), ("--clip-skip", {"clip_skip": 1})):
        options: dict[str, Any] = {"model": dense, "components": ["vae_decoder"], **change}
        line = refused(PlanError, **options, out=tmp_path / "b")
        assert line == f"{flag} changes a text encoder; exported are: vae_decoder"
    with pytest.raises(Unsupported, match="change text encoders; a fold keeps them"):
        resolve(target="diffusers", model=make_tiny("tiny"), task="edit", clip_skip=1)


def test_a_file_that_changes_is_noticed(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = embedding(tmp_path)
    plan = resolve(
        target="reference",
        model=dense,
        components=["text_encoder"],
        embedding=file,
        out=tmp_path / "b",
    )
    write = assembly._write_bundle

    def changing(*arguments: Any) -> Any:
        embedding(tmp_path, 4)
        return write(*arguments)

    monkeypatch.setattr(assembly, "_write_bundle", changing)
    with pytest.raises(MtuExportError, match="was changed while it was exported"):
        exporter.export(plan)
