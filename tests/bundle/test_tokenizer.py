"""The tokenizer against transformers' own on the same files; what damaged files say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import CLIPTokenizer

from mtu_export import checkpoint
from mtu_export.bundle import source_tokenizer, tokenizer
from mtu_export.spec import BundleError, CheckpointError, PlanError
from mtu_export.testing import vocabulary
from tests.support import independent_loop

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
    ours = tokenizer.load(folder / part)
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
    ours = tokenizer.load(folder / "tokenizer")
    kept = "photo " * 75
    assert ours.encode(kept)[1] == ""
    ids, cut = ours.encode(kept + "of a Red CAFÉ")
    assert cut == "of a Red CAFÉ"
    assert ids[0, 0] == ours.bos
    assert ids[0, -1] == ours.eos
    short = tokenizer.load(folder / "tokenizer", length=4)
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
    engine = tokenizer.load(folder / "tokenizer").engine
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
    bare = tokenizer.load(path)
    assert (bare.bos, bare.eos, bare.pad, bare.limit) == (49406, 49407, 49407, None)
    token = {"__type": "AddedToken", "content": tokenizer.END, "lstrip": False, "normalized": True}
    config = {"eos_token": token, "pad_token": "!", "model_max_length": 77}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    for loaded in (tokenizer.load(path), source_tokenizer.read(path)):
        assert (loaded.eos, loaded.pad) == (49407, 0)
    assert source_tokenizer.read(path).limit == 77


# --------------------------------------------------------------------------------- added tokens


def write_added(folder: Path, layout: str) -> None:
    """A tokenizer with a start, an end and four added tokens, as a version of transformers has it.

    "5": as this one saves; "4": with ``added_tokens_decoder``, and "4 fast" ``tokenizer.json`` too;
    "3": as in the first Stable Diffusion repositories.
    """
    vocabulary.write(folder, start=862, end=863)
    reference = CLIPTokenizer.from_pretrained(folder)
    reference.add_tokens(["<cat-toy>", AddedToken("Wow", single_word=True, lstrip=True)])
    reference.add_special_tokens({"additional_special_tokens": ["<sks>"]})
    reference.add_tokens([AddedToken("red", normalized=False, rstrip=True)])
    tokens = reference.added_tokens_decoder.items()
    if layout in ("5", "4 fast"):
        reference.save_pretrained(folder / "5")
        for path in (folder / "5").iterdir():
            path.rename(folder / path.name)
        (folder / "5").rmdir()
    if layout == "5":
        for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
            (folder / name).unlink()
        return
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    added = {added_token.content: number for number, added_token in tokens if number > 863}
    (folder / "added_tokens.json").write_text(json.dumps(added), "utf-8")
    if layout.startswith("4"):
        names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        config["added_tokens_decoder"] = {
            str(number): {name: getattr(added_token, name) for name in names}
            for number, added_token in tokens
        }
        config["additional_special_tokens"] = ["<sks>"]
    else:
        flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        start, end = ({"content": token, **flags} for token in (tokenizer.START, tokenizer.END))
        special = {"bos_token": start, "eos_token": end, "pad_token": tokenizer.END}
        special |= {"unk_token": end, "additional_special_tokens": ["<sks>"]}
        (folder / "special_tokens_map.json").write_text(json.dumps(special), "utf-8")
        config["bos_token"] = {"__type": "AddedToken", **start}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


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

Change = Callable[[dict[str, Any]], Any]


def change(name: str, alter: Change) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text("utf-8")) if path.exists() else {}
        alter(content)
        path.write_text(json.dumps(content), "utf-8")

    return damage


def git_lfs(name: str) -> Callable[[Path], Any]:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    return lambda folder: (folder / name).write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "vocab.json").unlink(), r"vocab\.json is missing"),
        (lambda f: (f / "merges.txt").unlink(), r"merges\.txt is missing"),
        (lambda f: (f / "merges.txt").write_bytes(b"\xff\xfe"), "valid UTF-8"),
        (lambda f: (f / "merges.txt").write_text("a b c\n"), "invalid at line 1"),
        (lambda f: (f / "merges.txt").write_text("q zz\n"), "'zz', which is not in the vocab"),
        (  # the parser panics
            lambda f: (f / "merges.txt").write_text(f"{tokenizer.END} {tokenizer.END}\n"),
            "merges name .*, which is not in the vocabulary",
        ),
        (lambda f: (f / "vocab.json").write_text("[]"), "does not hold a JSON object"),
        (lambda f: (f / "vocab.json").write_text('{"a": 1, "a": 2}'), "appears twice"),
        (change("vocab.json", lambda v: v.update(extra=-1)), "Bad vocabulary json file"),
        (change("vocab.json", lambda v: v.pop("a")), "merges name 'a', which is not in"),
        (
            change("tokenizer_config.json", lambda c: c.update(pad_token=["a"])),
            r"pad_token is \['a'\]; legal: a string or an object",
        ),
        (
            change("tokenizer_config.json", lambda c: c.update(padding_side="left")),
            "padding_side is 'left'; legal: 'right'",
        ),
        (
            change(
                "tokenizer_config.json",
                lambda c: c.update(added_tokens_decoder={"49500": {"content": "<mine>"}}),
            ),
            "'<mine>' is declared with id '49500'; transformers gives it 864",
        ),
        (git_lfs("vocab.json"), r"vocab\.json is a git-lfs pointer"),
        (git_lfs("merges.txt"), r"merges\.txt is a git-lfs pointer"),
        (git_lfs("tokenizer_config.json"), r"tokenizer_config\.json is a git-lfs pointer"),
    ],
)
def test_damaged_sources_are_one_line(
    damage: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    vocabulary.write(tmp_path / "t", start=49406, end=49407)
    damage(tmp_path / "t")
    with pytest.raises(CheckpointError, match=message) as error:
        source_tokenizer.export(tmp_path / "t", tmp_path / "out")
    assert str(error.value).isprintable()
    assert not (tmp_path / "out").exists()


def steps(document: dict[str, Any]) -> list[dict[str, Any]]:
    return document["pre_tokenizer"]["pretokenizers"]


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda d: d["model"]["vocab"].update(extra=0), "'!' and 'extra' have one id, 0"),
        (lambda d: d["model"]["vocab"].update(extra=-1), "'extra' has the id -1"),
        (lambda d: d["model"]["vocab"].update(extra="7"), "'extra' has the id '7'"),
        (lambda d: d["model"]["vocab"].update({"x" * 2000: 9999}), "is not a token"),
        (lambda d: d["model"]["vocab"].pop("a"), "no token 'a'"),
        (lambda d: d["model"].update(vocab=[]), "has no vocabulary"),
        (lambda d: d["model"].update(merges=[["q", "zz"]]), "'zz', which is not in the vocab"),
        (lambda d: d["model"].update(merges=[[1, 2]]), "a merge is not a pair of tokens"),
        (  # the parser panics
            lambda d: d["model"].update(merges=[[tokenizer.END, tokenizer.END]]),
            "merges name .*, which is not in the vocabulary",
        ),
        (lambda d: d["model"].update(dropout=0.5), "'model' is not that of CLIP's tokenizer"),
        (lambda d: d.pop("model"), "is not a canonical tokenizer"),
        (lambda d: d["normalizer"].update(type="Lowercase"), "'normalizer' is not that of CLIP's"),
        (lambda d: steps(d)[0].update(pattern={"Regex": "(a+)+$"}), "'pre_tokenizer' is not that"),
        (lambda d: steps(d).insert(0, {"type": "Whitespace"}), "'pre_tokenizer' is not that"),
        (lambda d: d["truncation"].update(max_length=9), "'truncation' is not .* for 77 ids"),
        (lambda d: d.update(more=1), "'more' is not that of CLIP's tokenizer"),
        (lambda d: d["post_processor"].update(cls=["x", 3]), r"bos .*'x'.* is not in the vocab"),
        (lambda d: d["added_tokens"][0].update(id=5), "has two ids"),
        (lambda d: d["added_tokens"][0].update(lstrip=1), "an added token is damaged"),
        (
            lambda d: d["added_tokens"].append(
                {**d["added_tokens"][0], "content": "<mine>", "id": 999}
            ),
            "added token '<mine>' has id 999, the next free one is 864",
        ),
    ],
)
def test_a_tokenizer_of_a_bundle_is_not_trusted(
    alter: Change, message: str, tmp_path: Path
) -> None:
    vocabulary.write(tmp_path / "t", start=862, end=863)
    source_tokenizer.export(tmp_path / "t", tmp_path / "out")
    change("tokenizer.json", alter)(tmp_path / "out")
    for kind in (CheckpointError, BundleError):
        with pytest.raises(kind, match=message) as error:
            tokenizer.load(tmp_path / "out", error=kind)
        assert str(error.value).isprintable()


def test_a_config_cannot_name_other_files(tmp_path: Path) -> None:
    """transformers would open them: these keys are the arguments of its constructor."""
    vocabulary.write(tmp_path / "t", start=49406, end=49407)
    secret = tmp_path / "secret.json"
    secret.write_text('{"!": 0}')
    keys = ("vocab", "vocab_file", "merges", "tokenizer_file", "gguf_file", "auto_map")
    config = {"init_inputs": [str(secret)], **dict.fromkeys(keys, str(secret))}
    change("tokenizer_config.json", lambda content: content.update(config))(tmp_path / "t")
    change("special_tokens_map.json", lambda content: content.update(config))(tmp_path / "t")
    assert source_tokenizer.read(tmp_path / "t").largest == 49407


def test_a_tokenizer_file_with_other_steps_is_refused(tmp_path: Path) -> None:
    write_added(tmp_path / "t", "5")
    for alter, message in (
        (lambda d: d["normalizer"]["normalizers"].pop(), "normalizer is not CLIP's"),
        (lambda d: steps(d)[0].update(pattern={"Regex": "(a+)+$"}), "pre_tokenizer is not CLIP's"),
        (lambda d: d["model"].update(byte_fallback=True), "model.byte_fallback is True"),
        (lambda d: d["model"].update(type="WordPiece"), "is not a byte-pair tokenizer"),
    ):
        shutil.copytree(tmp_path / "t", tmp_path / "copy", dirs_exist_ok=True)
        change("tokenizer.json", alter)(tmp_path / "copy")
        with pytest.raises(CheckpointError, match=message):
            source_tokenizer.read(tmp_path / "copy")


def test_links_that_leave_the_checkpoint_are_refused(tmp_path: Path) -> None:
    vocabulary.write(tmp_path / "pipe" / "tokenizer", start=49406, end=49407)
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (tmp_path / "pipe" / "tokenizer" / "tokenizer.json").symlink_to(secret)
    with pytest.raises(CheckpointError, match="link that leaves"):
        source_tokenizer.export(tmp_path / "pipe" / "tokenizer", tmp_path / "out")


def test_a_tokenizer_of_another_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    loaded = tokenizer.load(folder / "tokenizer")
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
        tokenizer.matches(tokenizer.load(tmp_path / "t"), {**config, "eos_token_id": 2})
    path = tmp_path / "t" / "tokenizer_config.json"
    path.write_text(json.dumps({**checkpoint.read_json(path), "model_max_length": 128}))
    with pytest.raises(CheckpointError, match="has model_max_length 128"):
        tokenizer.matches(source_tokenizer.read(tmp_path / "t"), {**config, "eos_token_id": 49406})
