"""A small byte-pair vocabulary in CLIP's format, learnt from captions that are generated here.

Random checkpoints use it, so that they contain no third-party file. Pairs are learnt in a fixed
order (most frequent first, then by spelling), which makes the files the same everywhere.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from mtu_export.bundle.tokenizer import END, START, WORD_END
from mtu_export.checkpoint.letters import bytes_as_letters

MERGES = 350
"""Plus 256 bytes, 256 bytes at the end of a word, start and end: 864 tokens."""
SIZE = 2 * 256 + MERGES + 2

_SIZES = ("small", "large", "tiny", "huge", "round", "shiny", "wooden", "bright", "transparent")
_COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "black", "white", "grey", "pink")
_COLOURS += ("brown", "golden", "silver", "turquoise")
_SHAPES = ("circle", "square", "triangle", "star", "cube", "ring", "cross", "heart", "rectangle")
_PLACES = ("beach", "mountain", "forest", "kitchen", "street", "garden", "desert", "lake", "city")
_PLACES += ("bedroom", "bridge", "village", "castle", "harbour", "meadow", "library")
_THINGS = ("cat", "dog", "house", "tree", "car", "boat", "bird", "flower", "person", "chair")
_THINGS += ("horse", "woman", "child", "bicycle", "umbrella", "lamp", "table", "robot", "dragon")
_TIMES = ("sunrise", "night", "winter", "autumn", "rain", "snow", "fog", "summer", "evening")
_STYLES = ("photo", "painting", "drawing", "watercolor", "sketch", "portrait", "photograph")
_STYLES += ("illustration", "sculpture", "poster", "mosaic")


def captions() -> Iterator[str]:
    """Captions and edit instructions about shapes, colours, places and styles."""
    for size, colour, shape in product(_SIZES, _COLOURS, _SHAPES):
        yield f"a {size} {colour} {shape} on a {_COLOURS[len(size + shape) % 14]} background"
    for colour, shape, other in product(_COLOURS, _SHAPES, _SHAPES):
        yield f"remove the {colour} {shape} next to the {other}"
        yield f"replace the {shape} with a {colour} {other}"
    for style, thing, place in product(_STYLES, _THINGS, _PLACES):
        yield f"a {style} of a {thing} in the {place}, highly detailed"
    for thing, time, style in product(_THINGS, _TIMES, _STYLES):
        yield f"turn the {style} of the {thing} into {time}"
        yield f"make it look like {time}, keep the {thing}"
    for place, colour in product(_PLACES, _COLOURS):
        yield f"add a {colour} sky above the {place}"
        yield f"what would the {place} look like, if it were {colour}?"


def learn(lines: Iterable[str] | None = None, count: int = MERGES) -> list[tuple[str, str]]:
    """The first ``count`` merges of byte-pair encoding on ``lines``, or on :func:`captions`.

    Fewer if every word becomes a single token before that.
    """
    letters = bytes_as_letters()
    lines = captions() if lines is None else lines
    frequencies = Counter(word for line in lines for word in line.replace(",", " ,").split())
    split_words: dict[tuple[str, ...], int] = {}
    for word, occurrences in frequencies.items():
        *head, last = (letters[byte] for byte in word.encode())
        split_words[*head, last + WORD_END] = occurrences
    merges: list[tuple[str, str]] = []
    for _ in range(count):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, occurrences in split_words.items():
            for pair in pairwise(word):
                pairs[pair] += occurrences
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split_words = {_merge(word, best): count for word, count in split_words.items()}
    return merges


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for token in word:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return tuple(merged)


def write(
    folder: Path,
    merges: Iterable[tuple[str, str]] | None = None,
    *,
    start: int,
    end: int,
    pad: str = END,
    length: int = 77,
) -> None:
    """Write a ``tokenizer/`` folder like those of Stable Diffusion.

    ``merges`` defaults to :func:`learn`; ``start`` and ``end`` are ids, ``pad`` is a token;
    ``length`` includes start and end.
    """
    pairs = learn() if merges is None else list(merges)
    letters = list(bytes_as_letters().values())
    tokens = [*letters, *(letter + WORD_END for letter in letters), *map("".join, pairs)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    _dump({**vocabulary, START: start, END: end}, folder / "vocab.json")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    special = {"bos_token": START, "eos_token": END, "pad_token": pad, "unk_token": END}
    _dump(special, folder / "special_tokens_map.json")
    config = {
        **special,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": length,
        "tokenizer_class": "CLIPTokenizer",
    }
    _dump(config, folder / "tokenizer_config.json")


def _dump(document: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", "utf-8")
