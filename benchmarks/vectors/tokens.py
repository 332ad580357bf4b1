"""``tokens.json``: texts and their ids, without and with added tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mtu_export.bundle import tokenizer

TEXTS = (
    "",
    "a photo of a red circle on a blue table",
    "  A  photo\tof\na RED\u00a0cat ",
    "the cat's dog'll, it'S 12 ½ ²",
    "cafe\u0301 café İstanbul ß ΟΔΟΣ \u1e9b\u0323",
    "<|endoftext|> <|startoftext|>x<|ENDOFTEXT|>! !wow! ''s !!",
    "中文 日本語 한국어 العربية हिन्दी",
    "👩‍👩‍👧 \u200b\ufeff \x00\x01 \x85 \u2028 \x1c",
    "photo " * 75,
    "photo " * 75 + "of a Red CAFÉ",
    "x" * 300,
)
_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
ADDED = (
    {"content": "<cat-toy>", **_PLAIN},
    {"content": "<cat-toy>_1", **_PLAIN},
    {"content": "<cat-toy>_2", **_PLAIN},
    {"content": "Wow", **_PLAIN, "single_word": True, "lstrip": True},
    {"content": "<sks>", **_PLAIN, "normalized": False},
    {"content": "bluered", **_PLAIN, "normalized": False, "rstrip": True},
    {"content": "<alone>_1", **_PLAIN},
)
ADDED_TEXTS = (
    "a photo of a <cat-toy> on a table",
    "<CAT-TOY>_1 <cat-toy>_2<cat-toy>",
    "oh   WOW, wows wow! x_wow wow\u0301 \u00a0wow",
    "<sks><SKS> bluered   \t bluered-cat BLUERED bluered",
    "<alone> <alone>_1",
    "photo " * 74 + "<cat-toy> cat",
)


def added_tokens(document: dict[str, Any]) -> list[dict[str, Any]]:
    """``ADDED`` with the next free ids of a ``tokenizer.json``."""
    ids = [*document["model"]["vocab"].values(), *(t["id"] for t in document["added_tokens"])]
    free = max(ids) + 1
    return [{"id": free + n, **token, "special": False} for n, token in enumerate(ADDED)]


def make(folder: Path, prompt: str) -> dict[str, Any]:
    """The document for the tokenizer of a folder; ``prompt`` is one text more."""
    document = json.loads((folder / tokenizer.FILE).read_text("utf-8"))
    added = added_tokens(document)
    more = {**document, "added_tokens": [*document["added_tokens"], *added]}
    plain, larger = (
        tokenizer.open_document(folder, each, tokenizer.LENGTH) for each in (document, more)
    )
    return {
        "texts": [encoded(plain, text) for text in (*TEXTS, prompt)],
        "added_tokens": added,
        "texts_with_added_tokens": [encoded(larger, text) for text in ADDED_TEXTS],
    }


def encoded(clip: tokenizer.Tokenizer, text: str) -> dict[str, Any]:
    """A text, its ids without the padding, and what is cut."""
    ids, cut = clip.encode(text)
    return {"text": text, "ids": ids[0].tolist(), "cut": cut}
