"""CLIP's tokenizer out of an installed open-clip-torch, read as data: its package is not imported.

The vocabulary is the first 49,152 − 256 − 2 merges of ``bpe_simple_vocab_16e6.txt.gz``, after 256
bytes and the same bytes at the end of a word. Source: OpenAI's CLIP, ``simple_tokenizer.py``.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

from mtu_export.checkpoint.letters import bytes_as_letters
from mtu_export.spec import CheckpointError

PACKAGE = "open-clip-torch"
_FILE = "open_clip/bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49152 - 256 - 2
_MOST_BYTES = 64_000_000
START, END = "<|startoftext|>", "<|endoftext|>"


def installed() -> Path | None:
    """The file of the installed package, or None."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (Path(str(path.locate())) for path in files if path.as_posix() == _FILE)
    return next((path for path in paths if path.is_file()), None)


def note() -> str:
    """Where the vocabulary is from and under which licence, for the model card."""
    metadata: Any = importlib.metadata.metadata(PACKAGE)
    licence = metadata.get("License-Expression") or metadata.get("License") or ""
    licence = licence if 0 < len(licence) < 80 else "MIT"
    version = importlib.metadata.version(PACKAGE)
    return f"The tokenizer is CLIP's, out of {PACKAGE} {version} (licence: {licence})."


def tokenizer(source: Path, pad: str) -> tuple[Path, Any]:
    """A folder with the tokenizer that pads with ``pad``, and what deletes it."""
    vocabulary, merges = _read(source)
    folder = tempfile.TemporaryDirectory(prefix="mtu-export-tokenizer-")
    out = Path(folder.name)
    (out / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    (out / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": pad,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "utf-8")
    return out, folder


def _read(source: Path) -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges of the packed list; refuses what is not CLIP's."""
    try:
        with gzip.open(source) as stream:
            data = stream.read(_MOST_BYTES + 1)
        lines = data.decode("utf-8").split("\n")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise CheckpointError(f"{source} cannot be read: {error}") from None
    merges = lines[1 : _MERGES + 1]
    if len(data) > _MOST_BYTES or len(merges) < _MERGES or any(m.count(" ") != 1 for m in merges):
        raise CheckpointError(f"{source} is not CLIP's list of merges")
    letters = [*bytes_as_letters().values()]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [merge.replace(" ", "") for merge in merges]
    words += [START, END]
    return {word: number for number, word in enumerate(words)}, merges
