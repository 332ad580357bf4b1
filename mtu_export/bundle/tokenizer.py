"""CLIP's tokenizer from ``vocab.json`` and ``merges.txt``, without PyTorch and transformers.

Text is brought to Unicode form NFC, white space collapsed, letters made small; words are split into
bytes and merged by rank, with ``</w>`` at the end of each. Ids are those of transformers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from mtu_export import checkpoint
from mtu_export.spec import CheckpointError, MtuExportError, PlanError, shown

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def bytes_as_letters() -> dict[int, str]:
    """A printable letter for every byte, in the order of CLIP's first 256 ids: "!" is 0.

    Bytes that print as themselves come first; the rest are letters from code point 256 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain}
    return letters | {byte: chr(256 + number) for number, byte in enumerate(rest)}


LENGTH = 77
"""Ids that a CLIP text encoder reads, start and end among them."""
_FILES = ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
_BYTES_LIMIT = 32_000_000
_TOKENS_LIMIT = 1_000_000
_NO_LIMIT = 10**9
"""``model_max_length`` from here on stands for none."""
_OLD_END = 2
"""``eos_token_id`` of configs from before it was put right; the greatest id is the end then."""
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
"""CLIP's words: letters, single digits, runs of other signs, English endings."""


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Text to the ids of a text encoder.

    ``largest`` is the greatest id of the vocabulary, ``limit`` the source's own
    ``model_max_length``, null where it says none.
    """

    bos: int
    eos: int
    pad: int
    length: int
    largest: int
    limit: int | None
    words: tokenizers.Tokenizer

    def encode(self, text: str) -> tuple[np.ndarray, str]:
        """The ids int32 [1, length] of a text, and what of it was cut off ("" when nothing).

        Start, ids, end, then padding. Raises ``PlanError`` for a text that no UTF-8 holds.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PlanError(f"the text holds half a character at {error.start}") from None
        found = self.words.encode(text, add_special_tokens=False)
        room = self.length - 2
        cut = text[found.offsets[room][0] :] if len(found.ids) > room else ""
        ids = np.full((1, self.length), self.pad, np.int32)
        row = [self.bos, *found.ids[:room], self.eos]
        ids[0, : len(row)] = row
        return ids, cut


def load(
    folder: Path, length: int = LENGTH, error: type[MtuExportError] = CheckpointError
) -> Tokenizer:
    """The tokenizer of a folder with ``vocab.json`` and ``merges.txt``.

    Names of special tokens come from ``tokenizer_config.json`` or ``special_tokens_map.json`` where
    these are; padding is the end otherwise. Raises ``error`` for files that are missing, damaged
    or contradict one another.
    """
    try:
        vocabulary = checkpoint.read_json(folder / "vocab.json")
        merges = _read_merges(folder / "merges.txt")
        return _build(folder, vocabulary, merges, length)
    except CheckpointError as problem:
        raise error(str(problem)) from None


def of_source(source: Path) -> Tokenizer:
    """The tokenizer of a checkpoint, out of ``tokenizer.json`` where it has only that.

    Raises ``CheckpointError``.
    """
    return _build(source, *_read_source(source), LENGTH)


def export(source: Path, out: Path) -> Tokenizer:
    """Write the tokenizer of ``source`` to the new folder ``out``; returns it, loaded from there.

    ``vocab.json`` and ``merges.txt`` are always written, out of ``tokenizer.json`` where the source
    has only that. Raises ``CheckpointError``.
    """
    vocabulary, merges = _read_source(source)
    _build(source, vocabulary, merges, LENGTH)
    out.mkdir(parents=True)
    text = json.dumps(vocabulary, ensure_ascii=False)
    (out / "vocab.json").write_text(text + "\n", "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (out / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    for name in _FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    return load(out)


def matches(tokenizer: Tokenizer, text_config: Mapping[str, Any]) -> None:
    """Refuse a tokenizer that is not that of the text encoder with this config.

    Raises ``CheckpointError``.
    """
    size = text_config.get("vocab_size")
    if not isinstance(size, int) or tokenizer.largest >= size:
        raise CheckpointError(
            f"the tokenizer has ids up to {tokenizer.largest}, the text encoder's vocab_size is "
            f"{shown(size)}"
        )
    length = text_config.get("max_position_embeddings", LENGTH)
    for name, said in (("reads", tokenizer.length), ("has model_max_length", tokenizer.limit)):
        if said is not None and said != length:
            raise CheckpointError(
                f"the tokenizer {name} {said}, the text encoder's max_position_embeddings is "
                f"{shown(length)}"
            )
    if text_config.get("eos_token_id") == _OLD_END:
        if tokenizer.eos != tokenizer.largest:
            raise CheckpointError(
                f"the text encoder's eos_token_id {_OLD_END} stands for the greatest id, "
                f"{tokenizer.largest}; the tokenizer's end is {tokenizer.eos}"
            )
        return
    for name, own in (("bos", tokenizer.bos), ("eos", tokenizer.eos)):
        said = text_config.get(f"{name}_token_id")
        if said is not None and said != own:
            raise CheckpointError(
                f"the text encoder's {name}_token_id is {shown(said)}, the tokenizer's is {own}"
            )


# -------------------------------------------------------------------------------------- reading


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """Pairs of ``merges.txt`` in the order of their rank."""
    try:
        if path.stat().st_size > _BYTES_LIMIT:
            raise CheckpointError(f"{path} has more than {_BYTES_LIMIT:,} bytes")
        lines = path.read_text("utf-8").split("\n")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    merges = []
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise CheckpointError(f"{path}: line {number} is no pair of tokens: {line[:80]!r}")
        merges.append((pair[0], pair[1]))
    return merges


def _read_source(source: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Vocabulary and merges of a checkpoint's folder; refuses links that leave it."""
    for path in sorted(source.glob("*")):
        if not checkpoint.stays_inside(path, source.parent):
            raise CheckpointError(f"{path} is a link that leaves {source.parent}")
    if (source / "vocab.json").is_file() or not (source / "tokenizer.json").is_file():
        return checkpoint.read_json(source / "vocab.json"), _read_merges(source / "merges.txt")
    return _read_whole(source / "tokenizer.json")


def _read_whole(path: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Vocabulary, added tokens among it, and merges of a ``tokenizer.json``."""
    found = checkpoint.read_json(path)
    model = found.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise CheckpointError(f"{path} is no byte-pair tokenizer")
    if model.get("end_of_word_suffix") != WORD_END:
        raise CheckpointError(f"{path}: words must end in {WORD_END}: not CLIP's format")
    vocabulary, rows, added = model.get("vocab"), model.get("merges"), found.get("added_tokens", [])
    if not isinstance(vocabulary, dict) or not isinstance(rows, list):
        raise CheckpointError(f"{path} has no vocabulary or no merges")
    merges = []
    for row in rows:
        pair = row.split(" ") if isinstance(row, str) else row
        if not isinstance(pair, list) or len(pair) != 2 or not all(_is_token(t) for t in pair):
            raise CheckpointError(f"{path}: a merge is no pair of tokens: {shown(row)}")
        merges.append((pair[0], pair[1]))
    vocabulary = dict(vocabulary)
    for row in added if isinstance(added, list) else [added]:
        if not isinstance(row, dict) or not _is_token(row.get("content")):
            raise CheckpointError(f"{path}: an added token is damaged: {shown(row)}")
        if vocabulary.setdefault(row["content"], row.get("id")) != row.get("id"):
            raise CheckpointError(f"{path}: token {row['content'][:80]!r} has two ids")
    return vocabulary, merges


def _is_token(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 1000 and not set(value) & set(" \n\r")


def _build(
    folder: Path, vocabulary: Mapping[str, Any], merges: list[tuple[str, str]], length: int
) -> Tokenizer:
    _check_vocabulary(folder / "vocab.json", vocabulary)
    if len(merges) > _TOKENS_LIMIT:
        raise CheckpointError(f"{folder}: more than {_TOKENS_LIMIT:,} merges")
    for pair in merges:
        for token in (*pair, "".join(pair)):
            if token not in vocabulary:
                raise CheckpointError(
                    f"{folder}: merges name {token[:80]!r}, which is not in the vocabulary"
                )
    config = _config(folder)
    special = {
        name: _special(config, name, default, vocabulary, folder)
        for name, default in (
            ("bos_token", START),
            ("eos_token", END),
            ("pad_token", END),
            ("unk_token", END),
        )
    }
    model = models.BPE(
        vocab=dict(vocabulary),
        merges=merges,
        end_of_word_suffix=WORD_END,
        unk_token=special["unk_token"],
    )
    words = tokenizers.Tokenizer(model)
    words.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    unique = dict.fromkeys([*special.values(), *_added(config, vocabulary, folder)])
    words.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in unique]
    )
    limit = config.get("model_max_length")
    if not isinstance(limit, int) or isinstance(limit, bool) or limit >= _NO_LIMIT:
        limit = None
    return Tokenizer(
        bos=vocabulary[special["bos_token"]],
        eos=vocabulary[special["eos_token"]],
        pad=vocabulary[special["pad_token"]],
        length=length,
        largest=max(vocabulary.values()),
        limit=limit,
        words=words,
    )


def _check_vocabulary(path: Path, vocabulary: Mapping[str, Any]) -> None:
    """Refuse ids that are no numbers or are there twice, and bytes that have no token."""
    if len(vocabulary) > _TOKENS_LIMIT:
        raise CheckpointError(f"{path}: more than {_TOKENS_LIMIT:,} tokens")
    seen: dict[int, str] = {}
    for token, number in vocabulary.items():
        if not _is_token(token):
            raise CheckpointError(f"{path}: {token[:80]!r} is no token")
        whole = isinstance(number, int) and not isinstance(number, bool)
        if not whole or not 0 <= number < 2**31:
            raise CheckpointError(f"{path}: {token[:80]!r} has the id {shown(number)}")
        if number in seen:
            raise CheckpointError(
                f"{path}: {seen[number][:80]!r} and {token[:80]!r} have one id, {number}"
            )
        seen[number] = token
    for letter in bytes_as_letters().values():
        for token in (letter, letter + WORD_END):
            if token not in vocabulary:
                raise CheckpointError(f"{path}: no token {token!r}: not every text has ids")


def _config(folder: Path) -> dict[str, Any]:
    """What the stock files say of special tokens, ``tokenizer_config.json`` first."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found |= checkpoint.read_json(folder / name)
    return found


def _added(config: Mapping[str, Any], vocabulary: Mapping[str, Any], folder: Path) -> list[str]:
    """Tokens that text is searched for as a whole; refuses those beyond the vocabulary."""
    rows = config.get("added_tokens_decoder") or {}
    if (folder / "added_tokens.json").is_file():
        raise CheckpointError(
            f"{folder}: added_tokens.json is refused: tokens beyond the encoder's"
        )
    found = []
    for number, row in rows.items() if isinstance(rows, dict) else ((None, rows),):
        token = row.get("content") if isinstance(row, dict) else row
        if not isinstance(token, str) or str(vocabulary.get(token)) != number:
            raise CheckpointError(
                f"{folder}: added token {shown(token)} of id {shown(number)} is not in the "
                "vocabulary"
            )
        found.append(token)
    return found


def _special(
    config: Mapping[str, Any], name: str, default: str, vocabulary: Mapping[str, Any], folder: Path
) -> str:
    """The text of a special token; refuses one that is not in the vocabulary."""
    row = config.get(name)
    token = row.get("content") if isinstance(row, dict) else row
    token = default if token is None else token
    if not isinstance(token, str) or token not in vocabulary:
        raise CheckpointError(f"{folder}: {name} {shown(token)} is not in the vocabulary")
    return token
