"""The tokenizer against transformers' own on the same files; what damaged files say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from mtu_export import checkpoint
from mtu_export.bundle import source_tokenizer, tokenizer
from mtu_export.spec import CheckpointError, PlanError
from mtu_export.testing import vocabulary
from tests.support import independent_loop
from tests.support.added_tokens import write_added

PARTS = ("tokenizer", "tokenizer_2")
"""Padding with the end, and with "!" as the second one of SDXL."""
LINES = [
    "",
    "  A  photo\tof a RED\u00a0cat ",
    "the cat's dog'll, it'S 12 ½ ²",
    "cafe\u0301 café İstanbul ß \u1e9b\u0323",
    "<|endoftext|> <|startoftext|>x<|ENDOFTEXT|> !wow! !!",
    "中文 日本語 한국어 العربية हिन्दी",
    "👩‍👩‍👧 \u200b\ufeff \x00\x01 \x85 \u2028",
    "word " * 200,
    "x" * 300,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokenizers")
    for name, pad in zip(PARTS, (tokenizer.END, "!"), strict=True):
        vocabulary.write(root / name, start=49406, end=49407, pad=pad)
    return root


def transformers_ids(reference: Any, text: str) -> list[int]:
    return reference(text, padding="max_length", max_length=77, truncation=True).input_ids


@pytest.mark.parametrize("part", PARTS)
def test_ids_are_those_of_transformers(part: str, folder: Path) -> None:
    reference = CLIPTokenizer.from_pretrained(folder / part)
    ours = source_tokenizer.read(folder / part)
    assert (ours.bos, ours.eos) == (reference.bos_token_id, reference.eos_token_id)
    assert ours.pad == reference.pad_token_id == {"tokenizer": 49407, "tokenizer_2": 0}[part]
    letters = st.characters(exclude_categories=["Cs"])  # type: ignore[arg-type]
    english = st.sampled_from([*"abc's ,.!?1 ", "photo ", "<|endoftext|>", "\u0301", "\t"])

    @settings(max_examples=300, deadline=None)
    @given(st.one_of(st.text(letters), st.lists(english, max_size=150).map("".join)))
    def same(text: str) -> None:
        ids, cut = ours.encode(text)
        assert ids.dtype == np.int32
        assert ids.shape == (1, 77)
        assert ids[0].tolist() == transformers_ids(reference, text)
        assert text.endswith(cut)

    for line in LINES:
        same = example(line)(same)
    same()


def test_a_long_text_says_what_it_lost(folder: Path) -> None:
    ours = source_tokenizer.read(folder / "tokenizer")
    kept = "photo " * 75
    assert ours.encode(kept)[1] == ""
    ids, cut = ours.encode(kept + "of a Red CAFÉ")
    assert cut == "of a Red CAFÉ"
    assert ids[0, 0] == ours.bos
    assert ids[0, -1] == ours.eos
    document = json.loads(json.dumps(ours.document))
    document["truncation"]["max_length"] = document["padding"]["strategy"]["Fixed"] = 4
    short = tokenizer.open_document(folder, document, 4)
    assert short.encode("photo of a cat")[1] == "a cat"
    with pytest.raises(PlanError, match="half a character at 1"):
        ours.encode("a\ud800")


def test_neither_torch_nor_transformers_is_imported() -> None:
    code = (
        "import sys, mtu_export.bundle.tokenizer; "
        "print({'torch', 'transformers', 'diffusers'} & set(sys.modules))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "set()"


# ---------------------------------------------------------------------------------- vocabulary


def test_the_vocabulary_is_real_byte_pair_encoding(folder: Path, tmp_path: Path) -> None:
    """The merges that the `tokenizers` library learns, up to the order of ties."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    merges = vocabulary.learn()
    assert len({"".join(pair) for pair in merges}) == vocabulary.MERGES
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=10**6, show_progress=False, end_of_word_suffix="</w>", min_frequency=0
    )
    lines = [line.replace(",", " ,") for line in vocabulary.captions()]
    trained.train_from_iterator(lines, trainer)
    theirs = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    assert merges[:13] == theirs[:13]
    spoken = {f"{word}</w>" for line in lines for word in line.split()}
    ours, whole = ({"".join(merge) for merge in pairs} & spoken for pairs in (merges, theirs))
    assert len(ours) > 0.85 * len(whole) > 100  # ties go in another order there
    engine = source_tokenizer.read(folder / "tokenizer").engine
    assert engine.encode("a photo of the red circle", add_special_tokens=False).tokens == [
        f"{word}</w>" for word in ("a", "photo", "of", "the", "red", "circle")
    ]
    vocabulary.write(tmp_path / "again", start=49406, end=49407)
    for path in sorted((folder / "tokenizer").iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_the_bytes_have_the_ids_of_clip() -> None:
    letters = list(tokenizer.bytes_as_letters().values())
    assert len(set(letters)) == 256
    assert (letters.index("!"), letters.index("a"), letters.index("~")) == (0, 64, 93)


# --------------------------------------------------------------------------------------- export


def test_export_from_either_form(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "whole" / "tokenizer_2"
    source.mkdir(parents=True)
    reference = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
    reference.save_pretrained(source)
    assert not (source / "vocab.json").exists()
    for name, tokenizer_folder in (("files", folder / "tokenizer_2"), ("whole", source)):
        exported = source_tokenizer.export(tokenizer_folder, tmp_path / name / "out")
        files = {path.name for path in (tmp_path / name / "out").iterdir()}
        assert {"tokenizer.json", "vocab.json", "merges.txt"} < files
        assert (exported.bos, exported.eos, exported.pad) == (49406, 49407, 0)
        again = CLIPTokenizer.from_pretrained(tmp_path / name / "out")
        for line in LINES:
            expected = transformers_ids(reference, line)
            assert exported.encode(line)[0][0].tolist() == expected == transformers_ids(again, line)


def test_the_tokenizers_of_old_checkpoints_load(folder: Path, tmp_path: Path) -> None:
    """Special tokens as objects, carriage returns, no config at all."""
    path = tmp_path / "old"
    path.mkdir()
    for name in ("vocab.json", "merges.txt"):
        data = (folder / "tokenizer" / name).read_bytes()
        (path / name).write_bytes(data.replace(b"\n", b"\r\n"))
    bare = source_tokenizer.read(path)
    assert (bare.bos, bare.eos, bare.pad, bare.limit) == (49406, 49407, 49407, None)
    token = {"__type": "AddedToken", "content": tokenizer.END, "lstrip": False, "normalized": True}
    config = {"eos_token": token, "pad_token": "!", "model_max_length": 77}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = source_tokenizer.read(path)
    assert (loaded.eos, loaded.pad, loaded.limit) == (49407, 0, 77)


# --------------------------------------------------------------------------------- added tokens


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["5", "4", "4 fast", "3"])
def test_added_tokens_are_those_of_transformers(layout: str, tmp_path: Path) -> None:
    """In the source, in the bundle, and in the file that other libraries open."""
    write_added(tmp_path / "t", layout)
    reference = CLIPTokenizer.from_pretrained(tmp_path / "t")
    assert reference("a <cat-toy>").input_ids == [862, 320, 864, 863]
    source = source_tokenizer.read(tmp_path / "t")
    bundle = source_tokenizer.export(tmp_path / "t", tmp_path / "out")
    again = CLIPTokenizer.from_pretrained(tmp_path / "out")
    whole, plain = (Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")) for _ in "12")
    plain.no_padding()
    plain.no_truncation()
    record = {"bos": bundle.bos, "eos": bundle.eos, "pad": bundle.pad, "length": bundle.length}
    contract = independent_loop.Tokenizer(tmp_path / "out", record)
    ids = json.loads((tmp_path / "out" / "vocab.json").read_text("utf-8"))
    assert (ids["<cat-toy>"], ids["<sks>"]) == (864, 866)
    pieces = ["<cat-toy>", "<CAT-TOY>", "wow", "WOW", " Wow ", "wowed", "<sks>", "<SKS>", "red"]
    pieces += ["red ", "RED", "\t", " ", "é", "e\u0301", "a", "!", "<|endoftext|>", "<|ENDOFTEXT|>"]

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.sampled_from(pieces), max_size=90).map("".join))
    def same(text: str) -> None:
        expected = transformers_ids(reference, text)
        for ours in (source, bundle):
            actual, cut = ours.encode(text)
            assert actual[0].tolist() == expected
            assert text.endswith(cut)
        assert whole.encode(text).ids == expected == transformers_ids(again, text)
        assert plain.encode(text).ids == reference(text).input_ids
        assert contract(text)[0].tolist() == expected

    example("".join(pieces))(same)()


def test_a_text_encoder_without_room_for_added_tokens_is_refused(tmp_path: Path) -> None:
    write_added(tmp_path / "t", "5")
    config = {"vocab_size": 868, "eos_token_id": 863, "bos_token_id": 862}
    tokenizer.matches(source_tokenizer.read(tmp_path / "t"), config)
    tokenizer.matches(source_tokenizer.read(tmp_path / "t"), {**config, "eos_token_id": 2})
    with pytest.raises(CheckpointError, match="it has no embedding for the added tokens"):
        tokenizer.matches(source_tokenizer.read(tmp_path / "t"), {**config, "vocab_size": 864})


# -------------------------------------------------------------------------------- damaged files


def test_a_tokenizer_of_another_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    loaded = source_tokenizer.read(folder / "tokenizer")
    config = {
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    }
    tokenizer.matches(loaded, config)
    tokenizer.matches(loaded, {**config, "bos_token_id": 0, "eos_token_id": 2})  # as SD 1.5 ships
    for change, message in (
        ({"vocab_size": 49407}, "ids up to 49407, the text encoder's vocab_size is 49407"),
        ({"vocab_size": None}, "vocab_size is None"),
        ({"eos_token_id": 49405}, "eos_token_id is 49405, the tokenizer's is 49407"),
        ({"bos_token_id": 5}, "bos_token_id is 5"),
        ({"max_position_embeddings": 64}, "reads 77, the text encoder's max_position"),
    ):
        with pytest.raises(CheckpointError, match=message):
            tokenizer.matches(loaded, {**config, **change})
    vocabulary.write(tmp_path / "t", start=49407, end=49406)
    with pytest.raises(CheckpointError, match="greatest id, 49407; the tokenizer's end is 49406"):
        tokenizer.matches(source_tokenizer.read(tmp_path / "t"), {**config, "eos_token_id": 2})
    path = tmp_path / "t" / "tokenizer_config.json"
    path.write_text(json.dumps({**checkpoint.read_json(path), "model_max_length": 128}))
    with pytest.raises(CheckpointError, match="has model_max_length 128"):
        tokenizer.matches(source_tokenizer.read(tmp_path / "t"), {**config, "eos_token_id": 49406})
