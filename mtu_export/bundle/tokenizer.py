"""CLIP's tokenizer from ``tokenizer.json``, without PyTorch and transformers.

Added tokens are matched as a whole. Other text is normalised to NFC, white space collapsed, letters
lower-cased; words are split into bytes and merged by rank, with ``</w>`` at the end of each. Ids
are those of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from mtu_export import checkpoint
from mtu_export.checkpoint.letters import bytes_as_letters
from mtu_export.spec import CheckpointError, MtuExportError, PlanError, first_line, shown

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
LENGTH = 77
"""Ids that a CLIP text encoder reads, start and end among them."""
FILE = "tokenizer.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
BYTES_LIMIT = 32_000_000
"""Bytes that a file of a tokenizer may have."""
_TOKENS_LIMIT = 1_000_000
_LONGEST_TOKEN = 1000
_OLD_END = 2
"""``eos_token_id`` of configs from before it was put right; the greatest id is the end then."""
WORD_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""CLIP's words: letters, single digits, runs of other signs, English endings."""
_TOKEN_PATTERN = rf"<\|startoftext\|>|<\|endoftext\|>|{WORD_PATTERN}"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Text to the ids of a text encoder.

    ``largest`` is the greatest id, ``largest_learned`` that of the vocabulary without added tokens;
    ``limit`` is the source's ``model_max_length``, None where it has none. ``document`` is the
    content of the canonical ``tokenizer.json``; ``engine`` encodes without start, end and padding.
    ``expansions`` maps the id of an added token that stands for several (textual inversion) to
    theirs.
    """

    bos: int
    eos: int
    pad: int
    length: int
    largest: int
    largest_learned: int
    limit: int | None
    document: Mapping[str, Any]
    engine: tokenizers.Tokenizer
    expansions: Mapping[int, tuple[int, ...]]

    def encode(self, text: str) -> tuple[np.ndarray, str]:
        """The ids int32 [1, length] of a text, and the text that was truncated ("" if none).

        Start, ids, end, then padding. Raises ``PlanError`` for a text that UTF-8 cannot encode.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PlanError(f"the text holds half a character at {error.start}") from None
        encoding = self.engine.encode(text, add_special_tokens=False)
        tokens = [
            (token, begin)
            for number, (begin, _) in zip(encoding.ids, encoding.offsets, strict=True)
            for token in self.expansions.get(number, (number,))
        ]
        room = self.length - 2
        cut = text[tokens[room][1] :] if len(tokens) > room else ""
        ids = np.full((1, self.length), self.pad, np.int32)
        filled = [self.bos, *(token for token, _ in tokens[:room]), self.eos]
        ids[0, : len(filled)] = filled
        return ids, cut


def load(
    folder: Path, length: int = LENGTH, error: type[MtuExportError] = CheckpointError
) -> Tokenizer:
    """The tokenizer of a bundle's folder: its canonical ``tokenizer.json``.

    Raises ``error`` for a file that is missing, damaged or of another tokenizer than CLIP's.
    """
    path = folder / FILE
    try:
        return open_document(path, checkpoint.read_json(path, limit=BYTES_LIMIT), length)
    except CheckpointError as problem:
        raise error(str(problem)) from None


def matches(tokenizer: Tokenizer, text_config: Mapping[str, Any]) -> None:
    """Refuse a tokenizer that does not belong to the text encoder of this config.

    Raises ``CheckpointError``.
    """
    size = text_config.get("vocab_size")
    if not isinstance(size, int) or tokenizer.largest >= size:
        learned = isinstance(size, int) and tokenizer.largest_learned < size
        why = ": it has no embedding for the added tokens" if learned else ""
        raise CheckpointError(
            f"the tokenizer has ids up to {tokenizer.largest}, the text encoder's vocab_size is "
            f"{shown(size)}{why}"
        )
    length = text_config.get("max_position_embeddings", LENGTH)
    for verb, count in (("reads", tokenizer.length), ("has model_max_length", tokenizer.limit)):
        if count is not None and count != length:
            raise CheckpointError(
                f"the tokenizer {verb} {count}, the text encoder's max_position_embeddings is "
                f"{shown(length)}"
            )
    if text_config.get("eos_token_id") == _OLD_END:
        if tokenizer.eos != tokenizer.largest_learned:
            raise CheckpointError(
                f"the text encoder's eos_token_id {_OLD_END} stands for the greatest id, "
                f"{tokenizer.largest_learned}; the tokenizer's end is {tokenizer.eos}"
            )
        return
    for name, token in (("bos", tokenizer.bos), ("eos", tokenizer.eos)):
        expected = text_config.get(f"{name}_token_id")
        if expected is not None and expected != token:
            raise CheckpointError(
                f"the text encoder's {name}_token_id is {shown(expected)}, the tokenizer's is "
                f"{token}"
            )


# -------------------------------------------------------------------------------- canonical form


def canonical_document(
    vocabulary: Any, merges: Any, special: Mapping[str, Any], added: Any, length: Any
) -> dict[str, Any]:
    """The canonical ``tokenizer.json``: CLIP's steps, ids cut and padded to ``length``.

    ``special`` has the (token, id) of ``bos``, ``eos`` and ``pad``, and ``unk``, a token.
    """
    return {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": length,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": {
            "strategy": {"Fixed": length},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": special["pad"][1],
            "pad_type_id": 0,
            "pad_token": special["pad"][0],
        },
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": list(NORMALIZERS)},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(PRE_TOKENIZERS)},
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": special["eos"],
            "cls": special["bos"],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": {**BYTE_LEVEL, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": special["unk"],
            "continuing_subword_prefix": "",
            "end_of_word_suffix": WORD_END,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
NORMALIZERS = (
    {"type": "NFC"},
    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
    {"type": "Lowercase"},
)
PRE_TOKENIZERS = (
    {"type": "Split", "pattern": {"Regex": _TOKEN_PATTERN}, "behavior": "Removed", "invert": True},
    BYTE_LEVEL,
)


def open_document(
    where: Path, document: Mapping[str, Any], length: int, limit: int | None = None
) -> Tokenizer:
    """The tokenizer of a canonical document. Refuses any other step or pattern than CLIP's."""
    try:
        model, added = document["model"], document["added_tokens"]
        post, padding = document["post_processor"], document["padding"]
        special = {"bos": post["cls"], "eos": post["sep"], "unk": model["unk_token"]}
        special["pad"] = [padding["pad_token"], padding["pad_id"]]
        vocabulary = model["vocab"]
        canonical = canonical_document(vocabulary, model["merges"], special, added, length)
    except (KeyError, TypeError, IndexError):
        raise CheckpointError(f"{where} is not a canonical tokenizer.json of CLIP") from None
    for key in {**canonical, **document}:
        if key not in document or document[key] != canonical.get(key):
            raise CheckpointError(
                f"{where}: {key[:80]!r} is not that of CLIP's tokenizer for {length} ids"
            )
    ids = _ids(where, vocabulary, added)
    check_merges(where, model["merges"], vocabulary)
    try:
        engine = tokenizers.Tokenizer.from_str(json.dumps(document))
        engine.no_truncation()
        engine.no_padding()
    except Exception as error:  # whatever the parser has to say of tokens and merges
        raise CheckpointError(f"{where} is not a tokenizer: {first_line(error)}") from None
    for token, number in ids.items():
        if engine.token_to_id(token) != number:
            raise CheckpointError(
                f"{where}: added token {token[:80]!r} has id {number}, the next free one is "
                f"{engine.token_to_id(token)}"
            )
    for name in SPECIAL_NAMES:
        token, number = special[name]
        if ids.get(token) != number:
            raise CheckpointError(f"{where}: {name} {shown(token)} is not in the vocabulary")
    bos, eos, pad = (ids[special[name][0]] for name in SPECIAL_NAMES)
    return Tokenizer(
        bos=bos,
        eos=eos,
        pad=pad,
        length=length,
        largest=max(ids.values()),
        largest_learned=max(vocabulary.values()),
        limit=limit,
        document=document,
        engine=engine,
        expansions=_expansions({entry["content"]: entry["id"] for entry in added}),
    )


def _expansions(added: Mapping[str, int]) -> dict[int, tuple[int, ...]]:
    """Added tokens that stand for several, as ``<cat>`` for ``<cat>``, ``<cat>_1``, ``<cat>_2``.

    So diffusers stores and reads textual inversions of several vectors
    (``TextualInversionLoaderMixin.maybe_convert_prompt``).
    """
    expansions = {}
    for token, number in added.items():
        numbers = [number]
        while (following := f"{token}_{len(numbers)}") in added:
            numbers.append(added[following])
        if len(numbers) > 1:
            expansions[number] = tuple(numbers)
    return expansions


SPECIAL_NAMES = ("bos", "eos", "pad")


def _ids(where: Path, vocabulary: Any, added: Any) -> dict[str, int]:
    """Ids of all tokens, added ones included; each id has one token, and each byte two tokens."""
    if not isinstance(vocabulary, dict) or not isinstance(added, list):
        raise CheckpointError(f"{where} has no vocabulary")
    if len(vocabulary) + len(added) > _TOKENS_LIMIT:
        raise CheckpointError(f"{where}: more than {_TOKENS_LIMIT:,} tokens")
    ids = dict(vocabulary)
    for entry in added:
        flags = isinstance(entry, dict) and {*entry} == {"id", "content", *_FLAGS}
        token = entry["content"] if flags else None
        if not isinstance(token, str) or not all(isinstance(entry[flag], bool) for flag in _FLAGS):
            raise CheckpointError(f"{where}: an added token is damaged: {shown(entry)}")
        if ids.setdefault(token, entry["id"]) != entry["id"]:
            raise CheckpointError(f"{where}: token {token[:80]!r} has two ids")
    seen: dict[int, str] = {}
    for token, number in ids.items():
        if not 0 < len(token) <= _LONGEST_TOKEN:
            raise CheckpointError(f"{where}: {token[:80]!r} is not a token")
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**31:
            raise CheckpointError(f"{where}: {token[:80]!r} has the id {shown(number)}")
        if number in seen:
            raise CheckpointError(
                f"{where}: {seen[number][:80]!r} and {token[:80]!r} have one id, {number}"
            )
        seen[number] = token
    for letter in bytes_as_letters().values():
        for token in (letter, letter + WORD_END):
            if token not in vocabulary:
                raise CheckpointError(f"{where}: no token {token!r}: not every text has ids")
    return ids


def check_merges(where: Path, merges: Any, vocabulary: Mapping[str, int]) -> None:
    """Refuse merges whose tokens the vocabulary lacks: the parser panics on some of them."""
    if not isinstance(merges, list) or len(merges) > _TOKENS_LIMIT:
        raise CheckpointError(f"{where} has no merges, or more than {_TOKENS_LIMIT:,}")
    for pair in merges:
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(t) is str for t in pair):
            raise CheckpointError(f"{where}: a merge is not a pair of tokens: {shown(pair)}")
        for token in (*pair, "".join(pair)):
            if token not in vocabulary:
                raise CheckpointError(
                    f"{where}: merges name {token[:80]!r}, which is not in the vocabulary"
                )


def read_merges(folder: Path) -> list[list[str]]:
    """Pairs of ``merges.txt`` in the order of their rank."""
    path = folder / MERGES
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if path.stat().st_size > BYTES_LIMIT:
        raise CheckpointError(f"{path} has more than {BYTES_LIMIT:,} bytes")
    with path.open("rb") as stream:
        if checkpoint.is_lfs_pointer(stream.read(64)):
            raise CheckpointError(checkpoint.lfs_message(path))
    try:
        _, merges = tokenizers.models.BPE.read_file(str(folder / VOCABULARY), str(path))
    except Exception as error:  # whatever the parser has to say of a line
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from None
    return [list(pair) for pair in merges]
