"""A reader of OpenStep property lists, as Xcode writes its projects."""

from __future__ import annotations

import re
from typing import Any

_TOKEN = re.compile(
    r'\s+|//[^\n]*|/\*.*?\*/|(?P<mark>[{}()=;,])|"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<word>[\w./$:-]+)',
    re.DOTALL,
)


def parse(text: str) -> Any:
    """Dictionaries, lists and strings; raises ``ValueError`` with the place."""
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"line {text.count(chr(10), 0, at) + 1}: {text[at : at + 20]!r}")
        if match.lastgroup is not None:
            tokens.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    value, rest = _value(tokens, 0)
    if rest != len(tokens):
        raise ValueError(f"more than one value: {tokens[rest:][:5]}")
    return value


def _value(tokens: list[tuple[str, str]], at: int) -> tuple[Any, int]:
    kind, text = tokens[at]
    if kind == "quoted":
        return re.sub(r"\\(.)", r"\1", text), at + 1
    if kind == "word":
        return text, at + 1
    if text == "{":
        return _dictionary(tokens, at + 1)
    if text == "(":
        return _list(tokens, at + 1)
    raise ValueError(f"no value: {text!r}")


def _dictionary(tokens: list[tuple[str, str]], at: int) -> tuple[dict[str, Any], int]:
    values: dict[str, Any] = {}
    while tokens[at] != ("mark", "}"):
        key, at = _value(tokens, at)
        if not isinstance(key, str) or key in values or tokens[at] != ("mark", "="):
            raise ValueError(f"key {key!r} is there twice, or has no value")
        values[key], at = _value(tokens, at + 1)
        if tokens[at] != ("mark", ";"):
            raise ValueError(f"key {key!r}: no semicolon")
        at += 1
    return values, at + 1


def _list(tokens: list[tuple[str, str]], at: int) -> tuple[list[Any], int]:
    values: list[Any] = []
    while tokens[at] != ("mark", ")"):
        value, at = _value(tokens, at)
        values.append(value)
        if tokens[at] == ("mark", ","):
            at += 1
        elif tokens[at] != ("mark", ")"):
            raise ValueError(f"a list after {value!r}")
    return values, at + 1
