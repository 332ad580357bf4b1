"""MAP.json: which tensor of another layout becomes which tensor of checkpoint format 1.

A map is declarative and read strictly: nothing in it is executed, and its patterns are not regular
expressions; matching is at most quadratic in a name's length. Mistakes raise ``PlanError`` with the
place and what is legal. docs/adopt.md describes the language.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtu_export import checkpoint
from mtu_export.spec import PlanError

LONGEST = 400
"""Characters of a pattern, a template, or a tensor's name."""
_MOST = 512
_HOLES = 8
_MAP_BYTES = 4_000_000
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")
_VALUE = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_BRACES = re.compile(r"\{([^{}]*)\}")
_KEYS = ("config", "values", "rules", "drop", "fill")
_RULE_KEYS = ("from", "to", "transpose", "split", "swap_halves", "stack", "concat")


@dataclass(frozen=True, kw_only=True)
class Hole:
    """A named placeholder of a pattern: text without dots, any text, or one of ``choices``."""

    name: str
    rest: bool = False
    choices: tuple[str, ...] = ()

    def ends(self, text: str, at: int) -> Iterator[int]:
        """Positions where a hole that begins at ``at`` may end, the shortest first."""
        if self.choices:
            yield from (at + len(choice) for choice in self.choices if text.startswith(choice, at))
            return
        stop = len(text) if self.rest else text.find(".", at)
        yield from range(at + 1, (len(text) if stop < 0 else stop) + 1)


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """Literal text and holes; it matches a whole name or not at all."""

    text: str
    tokens: tuple[str | Hole, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the holes."""
        return tuple(token.name for token in self.tokens if isinstance(token, Hole))

    def match(self, text: str) -> dict[str, str] | None:
        """What the holes hold in ``text``, or None where the pattern does not match."""
        first, last = self.tokens[0], self.tokens[-1]
        if isinstance(first, str) and not text.startswith(first):
            return None
        if (isinstance(last, str) and not text.endswith(last)) or len(text) > LONGEST:
            return None
        dead: set[tuple[int, int]] = set()
        values: dict[str, str] = {}

        def fits(number: int, at: int) -> bool:
            if number == len(self.tokens):
                return at == len(text)
            if (number, at) in dead:
                return False
            token = self.tokens[number]
            if isinstance(token, str):
                if text.startswith(token, at) and fits(number + 1, at + len(token)):
                    return True
            else:
                for end in token.ends(text, at):
                    if fits(number + 1, end):
                        values[token.name] = text[at:end]
                        return True
            dead.add((number, at))
            return False

        return values if fits(0, 0) else None


@dataclass(frozen=True, kw_only=True)
class Template:
    """The name of a target, with holes of the pattern in braces."""

    text: str
    names: frozenset[str]

    def fill(self, values: Mapping[str, str]) -> str:
        """The name with every hole replaced by its value."""
        return _BRACES.sub(lambda match: values[match[1]], self.text)


@dataclass(frozen=True, kw_only=True)
class Split:
    """One tensor into several along ``axis``; without parts and sizes the axis is removed."""

    axis: int
    name: str
    parts: int | None = None
    sizes: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Join:
    """Several tensors into one: ``stack`` adds ``axis``, ``concat`` extends it."""

    kind: str
    axis: int
    by: str
    order: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One entry of ``rules``; its operations apply in the order of the fields."""

    pattern: Pattern
    targets: tuple[Template, ...]
    transpose: tuple[int, ...] | None = None
    split: Split | None = None
    swap_halves: int | None = None
    join: Join | None = None


@dataclass(frozen=True, kw_only=True)
class Map:
    """A whole map: ``values`` translates the values of a hole, ``fill`` has constants by target."""

    config: Mapping[str, Any]
    rules: tuple[Rule, ...]
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    drop: tuple[Pattern, ...] = ()
    fill: tuple[tuple[Pattern, int], ...] = ()


# --------------------------------------------------------------------------------------- reading


def read(path: Path) -> Map:
    """The map of a JSON file. Raises ``PlanError``."""
    if not os.path.lexists(path):
        raise PlanError(f"no map file {str(path)[:200]!r}")
    document = checkpoint.read_json(path, limit=_MAP_BYTES, error=PlanError)
    try:
        return parse(document)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None


def parse(document: object) -> Map:
    """The map of JSON data. Raises ``PlanError``."""
    fields = _object(document, "the map", _KEYS, ("rules",))
    config = _object(fields.get("config", {}), "config")
    values = {
        name: _translation(name, table)
        for name, table in _object(fields.get("values", {}), "values").items()
    }
    return Map(
        config=config,
        values=values,
        rules=tuple(
            _rule(entry, f"rules[{i}]") for i, entry in enumerate(_list(fields["rules"], "rules"))
        ),
        drop=tuple(
            pattern(text, f"drop[{i}]")
            for i, text in enumerate(_list(fields.get("drop", []), "drop", least=0))
        ),
        fill=tuple(
            _fill(entry, f"fill[{i}]")
            for i, entry in enumerate(_list(fields.get("fill", []), "fill", least=0))
        ),
    )


def _object(
    value: object, where: str, legal: Sequence[str] = (), required: Sequence[str] = ()
) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise PlanError(f"{where} must be an object")
    for key in value:
        if legal and key not in legal:
            raise PlanError(f"{where}: unknown key {key[:80]!r}; legal: {', '.join(legal)}")
    for key in required:
        if key not in value:
            raise PlanError(f"{where}: key {key!r} is missing")
    return value


def _list(value: object, where: str, least: int = 1) -> list[Any]:
    if not isinstance(value, list) or not least <= len(value) <= _MOST:
        raise PlanError(f"{where} must be a list of {least} to {_MOST} entries")
    return value


def _number(value: object, where: str, least: int = 0, most: int = 7) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise PlanError(f"{where} must be an integer from {least} to {most}, got {value!r:.80}")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= LONGEST:
        raise PlanError(f"{where} must be a string of 1 to {LONGEST} characters")
    return value


def _word(value: object, where: str) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise PlanError(
            f"{where}: {value!r:.80} names no hole: letters, digits and '_', at most 32, "
            "no digit first"
        )
    return value


def _value(value: object, where: str) -> str:
    if not isinstance(value, str) or not _VALUE.fullmatch(value):
        raise PlanError(f"{where}: {value!r:.80} is not legal: letters, digits, '.', '-' and '_'")
    return value


def _translation(name: str, table: object) -> dict[str, str]:
    where = f"values.{_word(name, 'values')}"
    if isinstance(table, list):
        table = {str(i): word for i, word in enumerate(_list(table, where))}
    return {key: _value(word, where) for key, word in _object(table, where).items()}


def _tokens(text: str, where: str, hole: Callable[[str, str], Hole]) -> tuple[str | Hole, ...]:
    pieces = _BRACES.split(text)
    tokens: list[str | Hole] = []
    for i, piece in enumerate(pieces):
        if i % 2:
            tokens.append(hole(piece, where))
        elif "{" in piece or "}" in piece:
            raise PlanError(f"{where}: {text!r} has a brace without its other half")
        elif piece:
            tokens.append(piece)
    return tuple(tokens)


def _hole(text: str, where: str) -> Hole:
    """``name``, ``name...`` or ``name:one|other``."""
    name, colon, listed = text.partition(":")
    if colon:
        choices = tuple(listed.split("|"))
        return Hole(name=_word(name, where), choices=choices)
    rest = name.endswith("...")
    return Hole(name=_word(name.removesuffix("..."), where), rest=rest)


def pattern(value: object, where: str) -> Pattern:
    """Parse and check a pattern; ``where`` names it in errors."""
    text = _text(value, where)
    parsed = Pattern(text=text, tokens=_tokens(text, where, _hole))
    if len(set(parsed.names)) < len(parsed.names):
        raise PlanError(f"{where}: {text!r} has two holes of one name")
    if len(parsed.names) > _HOLES:
        raise PlanError(f"{where}: {text!r} has more than {_HOLES} holes")
    for first, second in zip(parsed.tokens, parsed.tokens[1:], strict=False):
        both = isinstance(first, Hole) and isinstance(second, Hole)
        if both and not (first.choices or second.choices):  # type: ignore[union-attr]
            raise PlanError(f"{where}: {text!r}: nothing tells where the first of two holes ends")
    return parsed


def _template(value: object, where: str, legal: Sequence[str]) -> Template:
    text = _text(value, where)
    names = [token.name for token in _tokens(text, where, _plain) if isinstance(token, Hole)]
    for name in names:
        if name not in legal:
            raise PlanError(
                f"{where}: {text!r}: nothing is called {name!r}; legal: "
                f"{', '.join(legal) or 'no hole'}"
            )
    return Template(text=text, names=frozenset(names))


def _plain(text: str, where: str) -> Hole:
    return Hole(name=_word(text, where))


def _fill(value: object, where: str) -> tuple[Pattern, int]:
    fields = _object(value, where, ("to", "value"), ("to", "value"))
    return pattern(fields["to"], f"{where}.to"), _number(fields["value"], f"{where}.value", most=1)


def _rule(value: object, where: str) -> Rule:
    fields = _object(value, where, _RULE_KEYS, ("from", "to"))
    source = pattern(fields["from"], f"{where}.from")
    split = _split(fields["split"], f"{where}.split", source) if "split" in fields else None
    join = _join(fields, where, source)
    legal = [name for name in source.names if join is None or name != join.by]
    legal += [split.name] if split else []
    templates = fields["to"] if isinstance(fields["to"], list) else [fields["to"]]
    targets = tuple(
        _template(template, f"{where}.to", legal) for template in _list(templates, f"{where}.to")
    )
    for target in targets:
        if split and split.name not in target.names:
            raise PlanError(f"{where}.to: {target.text!r} lacks {{{split.name}}} of the split")
    transpose = None
    if "transpose" in fields:
        listed = _list(fields["transpose"], f"{where}.transpose")
        axes = [_number(axis, f"{where}.transpose") for axis in listed]
        if sorted(axes) != list(range(len(axes))):
            raise PlanError(f"{where}.transpose must name every axis once, got {axes}")
        transpose = tuple(axes)
    swap = (
        _number(fields["swap_halves"], f"{where}.swap_halves") if "swap_halves" in fields else None
    )
    return Rule(
        pattern=source,
        targets=targets,
        transpose=transpose,
        split=split,
        swap_halves=swap,
        join=join,
    )


def _split(value: object, where: str, source: Pattern) -> Split:
    fields = _object(value, where, ("axis", "as", "parts", "sizes"), ("axis", "as"))
    name = _word(fields["as"], f"{where}.as")
    if name in source.names:
        raise PlanError(f"{where}.as: {name!r} is already a hole of {source.text!r}")
    if "parts" in fields and "sizes" in fields:
        raise PlanError(f"{where}: name parts or sizes, not both")
    parts = _number(fields["parts"], f"{where}.parts", 1, _MOST) if "parts" in fields else None
    sizes = None
    if "sizes" in fields:
        listed = _list(fields["sizes"], f"{where}.sizes")
        sizes = tuple(_number(size, f"{where}.sizes", 1, 2**24) for size in listed)
    return Split(axis=_number(fields["axis"], f"{where}.axis"), name=name, parts=parts, sizes=sizes)


def _join(rule: Mapping[str, Any], where: str, source: Pattern) -> Join | None:
    kinds = [kind for kind in ("stack", "concat") if kind in rule]
    if not kinds:
        return None
    if len(kinds) > 1:
        raise PlanError(f"{where}: name stack or concat, not both")
    kind, where = kinds[0], f"{where}.{kinds[0]}"
    fields = _object(rule[kind], where, ("axis", "by", "order"), ("axis", "by"))
    by = fields["by"]
    if by not in source.names:
        raise PlanError(
            f"{where}.by: {by!r:.80} is no hole of {source.text!r}; legal: "
            f"{', '.join(source.names) or 'none: the pattern has no hole'}"
        )
    order = None
    if "order" in fields:
        listed = _list(fields["order"], f"{where}.order")
        order = tuple(_value(entry, f"{where}.order") for entry in listed)
        if len(set(order)) < len(order):
            raise PlanError(f"{where}.order names a value twice")
    return Join(kind=kind, axis=_number(fields["axis"], f"{where}.axis"), by=by, order=order)
