"""Tokenizers that are damaged, hostile or not CLIP's: one line each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtu_export.bundle import source_tokenizer, tokenizer
from mtu_export.spec import BundleError, CheckpointError
from mtu_export.testing import vocabulary
from tests.support.added_tokens import write_added

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


def test_links_that_leave_the_checkpoint_are_refused(tmp_path: Path) -> None:
    vocabulary.write(tmp_path / "pipe" / "tokenizer", start=49406, end=49407)
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (tmp_path / "pipe" / "tokenizer" / "tokenizer.json").symlink_to(secret)
    with pytest.raises(CheckpointError, match="link that leaves"):
        source_tokenizer.export(tmp_path / "pipe" / "tokenizer", tmp_path / "out")


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
