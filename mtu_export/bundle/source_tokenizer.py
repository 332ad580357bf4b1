"""The tokenizer of a checkpoint: read by transformers, written to a bundle in canonical form."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtu_export import checkpoint
from mtu_export.bundle import tokenizer
from mtu_export.bundle.tokenizer import (
    BYTE_LEVEL,
    BYTES_LIMIT,
    CONFIG,
    FILE,
    LENGTH,
    MERGES,
    NORMALIZERS,
    PRE_TOKENIZERS,
    SPECIAL,
    SPECIAL_NAMES,
    VOCABULARY,
    WORD_END,
    WORD_PATTERN,
    Tokenizer,
    canonical_document,
    check_merges,
    open_document,
    read_merges,
)
from mtu_export.spec import CheckpointError, first_line, shown

ADDED = "added_tokens.json"
_FIXED: Mapping[str, Any] = {
    "padding_side": "right",
    "truncation_side": "right",
    "split_special_tokens": False,
}
"""Settings of ``tokenizer_config.json`` that change ids, with their only legal value."""
_TOKEN_KEYS = ("additional_special_tokens", "extra_special_tokens", "added_tokens_decoder")
_NO_LIMIT = 10**9
"""``model_max_length`` from here on stands for none."""


def read(source: Path, tokens: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer of a checkpoint's folder, as transformers reads it, with added ``tokens``.

    Raises ``CheckpointError``.
    """
    document, limit = _document(source, tokens)
    return open_document(source, document, LENGTH, limit)


def export(source: Path, out: Path, tokens: Sequence[str] = ()) -> Tokenizer:
    """Write the tokenizer of ``source`` to the new folder ``out`` and load it from there.

    Beside the canonical ``tokenizer.json`` there are ``vocab.json``, ``merges.txt`` and the
    source's configs; ``tokens`` are added. Raises ``CheckpointError``.
    """
    document = read(source, tokens).document
    out.mkdir(parents=True)
    _dump(document, out / FILE)
    added = {token["content"]: token["id"] for token in document["added_tokens"]}
    _dump({**document["model"]["vocab"], **added}, out / VOCABULARY)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in document["model"]["merges"])]
    (out / MERGES).write_text("\n".join(lines) + "\n", "utf-8")
    for name in (CONFIG, SPECIAL):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    return tokenizer.load(out)


def _dump(value: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", "utf-8")


def _document(source: Path, tokens: Sequence[str]) -> tuple[dict[str, Any], int | None]:
    """The canonical document of a checkpoint's tokenizer, and its ``model_max_length`` if any.

    transformers reads copies of the stock files whose configs hold tokens only, so that a config
    cannot make it open other files.
    """
    for path in sorted(source.glob("*")):
        if not checkpoint.stays_inside(path, source.parent):
            raise CheckpointError(f"{path} is a link that leaves {source.parent}")
    config = _checked_configs(source)
    with tempfile.TemporaryDirectory() as folder:
        _copy_files(source, Path(folder))
        reader = _read_by_transformers(source, Path(folder))
    for token in tokens:
        reader.add_tokens(token)
    data = json.loads(reader.backend_tokenizer.to_str())
    added = sorted(data["added_tokens"], key=lambda token: token["id"])
    names = {name: str(getattr(reader, f"{name}_token")) for name in (*SPECIAL_NAMES, "unk")}
    special: dict[str, Any] = {
        name: [names[name], reader.backend_tokenizer.token_to_id(names[name])]
        for name in SPECIAL_NAMES
    }
    model = data["model"]
    for number, token in _declared(source, config):
        actual = reader.backend_tokenizer.token_to_id(token)
        if str(number) != str(actual):
            raise CheckpointError(
                f"{source}: added token {token[:80]!r} is declared with id {shown(number)}; "
                f"transformers gives it {actual}"
            )
    limit = config.get("model_max_length")
    document = canonical_document(
        model["vocab"], model["merges"], {**special, "unk": names["unk"]}, added, LENGTH
    )
    return document, limit if type(limit) is int and limit < _NO_LIMIT else None


def _checked_configs(source: Path) -> dict[str, Any]:
    """``tokenizer_config.json``; refuses settings that would change ids."""
    path = source / CONFIG
    config = checkpoint.read_json(path, limit=BYTES_LIMIT) if path.is_file() else {}
    for key, legal in _FIXED.items():
        if config.get(key, legal) != legal:
            raise CheckpointError(f"{path}: {key} is {shown(config[key])}; legal: {legal!r}")
    return config


def _copy_files(source: Path, folder: Path) -> None:
    """Copy what transformers reads of a tokenizer, checked: JSON, sizes, the steps of CLIP."""
    whole = (source / FILE).is_file()
    for name in () if whole else (VOCABULARY, MERGES):
        if not (source / name).is_file():
            raise CheckpointError(f"{source / name} is missing")
    names = (FILE,) if whole else (VOCABULARY,)
    for name in (*names, CONFIG, SPECIAL, ADDED):
        if not (source / name).is_file():
            continue
        value = checkpoint.read_json(source / name, limit=BYTES_LIMIT)
        if name in (CONFIG, SPECIAL):
            value = _tokens_alone(source / name, value)
            value |= {"tokenizer_class": "CLIPTokenizer"} if name == CONFIG else {}
        if name == FILE:
            value = _checked_steps(source / name, value)
        if name == VOCABULARY and not whole:
            check_merges(source / MERGES, read_merges(source), value)
        _dump(value, folder / name)
    if not whole:
        shutil.copyfile(source / MERGES, folder / MERGES)


def _tokens_alone(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config that name tokens."""
    for key, value in config.items():
        if key.endswith("_token") and not isinstance(value, (str, dict, type(None))):
            raise CheckpointError(f"{path}: {key} is {shown(value)}; legal: a string or an object")
    return {k: v for k, v in config.items() if k.endswith("_token") or k in _TOKEN_KEYS}


def _checked_steps(path: Path, value: Mapping[str, Any]) -> dict[str, Any]:
    """Vocabulary, merges and added tokens of a ``tokenizer.json``; refuses other steps than CLIP's.

    transformers would replace them with CLIP's, and a file with other steps needs those.
    """
    model = value.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise CheckpointError(f"{path} is not a byte-pair tokenizer")
    if model.get("end_of_word_suffix") != WORD_END:
        raise CheckpointError(f"{path}: words must end in {WORD_END}: not CLIP's format")
    for key in ("dropout", "continuing_subword_prefix", "byte_fallback", "ignore_merges"):
        if model.get(key):
            raise CheckpointError(f"{path}: model.{key} is {shown(model[key])}: not CLIP's format")
    if not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise CheckpointError(f"{path} has no vocabulary or no merges")
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    check_merges(path, merges, model["vocab"])
    for key, inner, legal in (
        ("normalizer", "normalizers", (NORMALIZERS,)),
        ("pre_tokenizer", "pretokenizers", (PRE_TOKENIZERS, _PLAIN_PRE_TOKENIZERS)),
    ):
        steps = value.get(key)
        listed = steps.get(inner) if isinstance(steps, dict) else None
        if not isinstance(listed, list) or not any(
            _same_steps(listed, variant) for variant in legal
        ):
            raise CheckpointError(f"{path}: {key} is not CLIP's: {shown(steps)}")
    added = value.get("added_tokens", [])
    steps = {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        **steps,
        "added_tokens": added,
        "model": {"type": "BPE", "vocab": model["vocab"], "merges": model["merges"]},
    }


_PLAIN_PRE_TOKENIZERS = (
    {**PRE_TOKENIZERS[0], "pattern": {"Regex": WORD_PATTERN}},
    BYTE_LEVEL,
)
"""As transformers 4 writes them: without the special tokens, which are found before."""


def _same_steps(steps: list[Any], legal: tuple[Mapping[str, Any], ...]) -> bool:
    """Whether steps are those of ``legal``; keys that old files lack may be missing."""
    return len(steps) == len(legal) and all(
        isinstance(step, dict)
        and step.get("type") == stock["type"]
        and step.items() <= stock.items()
        for step, stock in zip(steps, legal, strict=True)
    )


def _read_by_transformers(source: Path, folder: Path) -> Any:
    """transformers' ``CLIPTokenizer`` of checked copies of the files of ``source``."""
    from transformers import CLIPTokenizer

    logger = logging.getLogger("transformers")
    level = logger.level
    try:
        logger.setLevel(logging.CRITICAL)
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever odd types and tokens set off inside
        raise CheckpointError(f"{source} is not a tokenizer: {first_line(error)}") from None
    finally:
        logger.setLevel(level)


def _declared(source: Path, config: Mapping[str, Any]) -> list[tuple[Any, str]]:
    """(id, token) of the added tokens that the files name."""
    listed = config.get("added_tokens_decoder")
    if isinstance(listed, dict):
        return [(number, str(token["content"])) for number, token in listed.items()]
    pairs: list[tuple[Any, str]] = []
    if (source / ADDED).is_file():
        pairs += [(number, token) for token, number in checkpoint.read_json(source / ADDED).items()]
    if (source / FILE).is_file():
        added = checkpoint.read_json(source / FILE, limit=BYTES_LIMIT).get("added_tokens", [])
        pairs += [(token["id"], token["content"]) for token in added]
    return pairs
