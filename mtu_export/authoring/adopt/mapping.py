"""MAP.json: which tensor of a foreign layout becomes which tensor of checkpoint format 1.

Declarative data, read strictly: nothing of it is executed, and its patterns are no regular
expressions, so that matching takes at most the square of a name's length. Mistakes are
``PlanError`` with the place and what is legal. docs/adopt.md describes the language.
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
    """A named place of a pattern: one piece without dots, the rest, or one of ``choices``."""

    name: str
    rest: bool = False
    choices: tuple[str, ...] = ()

    def ends(self, text: str, at: int) -> Iterator[int]:
        """Where the hole may end when it begins at ``at``; the shortest first."""
        if self.choices:
            yield from (at + len(word) for word in self.choices if text.startswith(word, at))
            return
        stop = len(text) if self.rest else text.find(".", at)
        yield from range(at + 1, (len(text) if stop < 0 else stop) + 1)


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """Literal text and holes; a name fits as a whole or not at all."""

    text: str
    tokens: tuple[str | Hole, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the holes."""
        return tuple(token.name for token in self.tokens if isinstance(token, Hole))

    def match(self, text: str) -> dict[str, str] | None:
        """What the holes hold in ``text``, or null where it does not fit."""
        first, last = self.tokens[0], self.tokens[-1]
        if isinstance(first, str) and not text.startswith(first):
            return None
        if (isinstance(last, str) and not text.endswith(last)) or len(text) > LONGEST:
            return None
        dead: set[tuple[int, int]] = set()
        held: dict[str, str] = {}

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
                        held[token.name] = text[at:end]
                        return True
            dead.add((number, at))
            return False

        return held if fits(0, 0) else None


@dataclass(frozen=True, kw_only=True)
class Template:
    """A target's name with the holes of its pattern in braces."""

    text: str
    names: frozenset[str]

    def fill(self, values: Mapping[str, str]) -> str:
        """The name with every brace replaced."""
        return _BRACES.sub(lambda found: values[found[1]], self.text)


@dataclass(frozen=True, kw_only=True)
class Split:
    """One tensor into several along ``axis``; without parts and sizes the axis goes away."""

    axis: int
    name: str
    parts: int | None = None
    sizes: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Join:
    """Several tensors into one: ``stack`` makes ``axis``, ``concat`` grows it."""

    kind: str
    axis: int
    by: str
    order: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row of ``rules``; its operations apply in the order of the fields."""

    pattern: Pattern
    targets: tuple[Template, ...]
    transpose: tuple[int, ...] | None = None
    split: Split | None = None
    swap_halves: int | None = None
    join: Join | None = None


@dataclass(frozen=True, kw_only=True)
class Map:
    """A whole map: ``values`` translates what a hole holds; ``fill`` are constants by target."""

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
    found = checkpoint.read_json(path, limit=_MAP_BYTES, error=PlanError)
    try:
        return parse(found)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None


def parse(found: object) -> Map:
    """The map of JSON data. Raises ``PlanError``."""
    row = _object(found, "the map", _KEYS, ("rules",))
    config = _object(row.get("config", {}), "config")
    values = {
        name: _translation(name, table)
        for name, table in _object(row.get("values", {}), "values").items()
    }
    return Map(
        config=config,
        values=values,
        rules=tuple(
            _rule(entry, f"rules[{i}]") for i, entry in enumerate(_list(row["rules"], "rules"))
        ),
        drop=tuple(
            pattern(text, f"drop[{i}]")
            for i, text in enumerate(_list(row.get("drop", []), "drop", least=0))
        ),
        fill=tuple(
            _fill(entry, f"fill[{i}]")
            for i, entry in enumerate(_list(row.get("fill", []), "fill", least=0))
        ),
    )


def _object(
    found: object, where: str, legal: Sequence[str] = (), needed: Sequence[str] = ()
) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise PlanError(f"{where} must be an object")
    for key in found:
        if legal and key not in legal:
            raise PlanError(f"{where}: unknown key {key[:80]!r}; legal: {', '.join(legal)}")
    for key in needed:
        if key not in found:
            raise PlanError(f"{where}: key {key!r} is missing")
    return found


def _list(found: object, where: str, least: int = 1) -> list[Any]:
    if not isinstance(found, list) or not least <= len(found) <= _MOST:
        raise PlanError(f"{where} must be a list of {least} to {_MOST} entries")
    return found


def _number(found: object, where: str, least: int = 0, most: int = 7) -> int:
    if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= most:
        raise PlanError(f"{where} must be an integer from {least} to {most}, got {found!r:.80}")
    return found


def _text(found: object, where: str) -> str:
    if not isinstance(found, str) or not 1 <= len(found) <= LONGEST:
        raise PlanError(f"{where} must be a string of 1 to {LONGEST} characters")
    return found


def _word(found: object, where: str) -> str:
    if not isinstance(found, str) or not _WORD.fullmatch(found):
        raise PlanError(
            f"{where}: {found!r:.80} names no hole: letters, digits and '_', at most 32, "
            "no digit first"
        )
    return found


def _value(found: object, where: str) -> str:
    if not isinstance(found, str) or not _VALUE.fullmatch(found):
        raise PlanError(f"{where}: {found!r:.80} is not legal: letters, digits, '.', '-' and '_'")
    return found


def _translation(name: str, table: object) -> dict[str, str]:
    where = f"values.{_word(name, 'values')}"
    if isinstance(table, list):
        table = {str(i): word for i, word in enumerate(_list(table, where))}
    return {key: _value(word, where) for key, word in _object(table, where).items()}


def _tokens(text: str, where: str, hole: Callable[[str, str], Hole]) -> tuple[str | Hole, ...]:
    pieces = _BRACES.split(text)
    found: list[str | Hole] = []
    for i, piece in enumerate(pieces):
        if i % 2:
            found.append(hole(piece, where))
        elif "{" in piece or "}" in piece:
            raise PlanError(f"{where}: {text!r} has a brace without its other half")
        elif piece:
            found.append(piece)
    return tuple(found)


def _hole(text: str, where: str) -> Hole:
    """``name``, ``name...`` or ``name:one|other``."""
    name, colon, words = text.partition(":")
    if colon:
        choices = tuple(words.split("|"))
        return Hole(name=_word(name, where), choices=choices)
    rest = name.endswith("...")
    return Hole(name=_word(name.removesuffix("..."), where), rest=rest)


def pattern(found: object, where: str) -> Pattern:
    """The pattern of ``found``, checked; ``where`` names it in errors."""
    text = _text(found, where)
    made = Pattern(text=text, tokens=_tokens(text, where, _hole))
    if len(set(made.names)) < len(made.names):
        raise PlanError(f"{where}: {text!r} has two holes of one name")
    if len(made.names) > _HOLES:
        raise PlanError(f"{where}: {text!r} has more than {_HOLES} holes")
    for one, other in zip(made.tokens, made.tokens[1:], strict=False):
        both = isinstance(one, Hole) and isinstance(other, Hole)
        if both and not (one.choices or other.choices):  # type: ignore[union-attr]
            raise PlanError(f"{where}: {text!r}: nothing tells where the first of two holes ends")
    return made


def _template(found: object, where: str, legal: Sequence[str]) -> Template:
    text = _text(found, where)
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


def _fill(found: object, where: str) -> tuple[Pattern, int]:
    row = _object(found, where, ("to", "value"), ("to", "value"))
    return pattern(row["to"], f"{where}.to"), _number(row["value"], f"{where}.value", most=1)


def _rule(found: object, where: str) -> Rule:
    row = _object(found, where, _RULE_KEYS, ("from", "to"))
    made = pattern(row["from"], f"{where}.from")
    split = _split(row["split"], f"{where}.split", made) if "split" in row else None
    join = _join(row, where, made)
    legal = [name for name in made.names if join is None or name != join.by]
    legal += [split.name] if split else []
    words = row["to"] if isinstance(row["to"], list) else [row["to"]]
    targets = tuple(_template(word, f"{where}.to", legal) for word in _list(words, f"{where}.to"))
    for target in targets:
        if split and split.name not in target.names:
            raise PlanError(f"{where}.to: {target.text!r} lacks {{{split.name}}} of the split")
    transpose = None
    if "transpose" in row:
        rows = _list(row["transpose"], f"{where}.transpose")
        axes = [_number(axis, f"{where}.transpose") for axis in rows]
        if sorted(axes) != list(range(len(axes))):
            raise PlanError(f"{where}.transpose must name every axis once, got {axes}")
        transpose = tuple(axes)
    swap = _number(row["swap_halves"], f"{where}.swap_halves") if "swap_halves" in row else None
    return Rule(
        pattern=made,
        targets=targets,
        transpose=transpose,
        split=split,
        swap_halves=swap,
        join=join,
    )


def _split(found: object, where: str, made: Pattern) -> Split:
    row = _object(found, where, ("axis", "as", "parts", "sizes"), ("axis", "as"))
    name = _word(row["as"], f"{where}.as")
    if name in made.names:
        raise PlanError(f"{where}.as: {name!r} is already a hole of {made.text!r}")
    if "parts" in row and "sizes" in row:
        raise PlanError(f"{where}: name parts or sizes, not both")
    parts = _number(row["parts"], f"{where}.parts", 1, _MOST) if "parts" in row else None
    sizes = None
    if "sizes" in row:
        rows = _list(row["sizes"], f"{where}.sizes")
        sizes = tuple(_number(size, f"{where}.sizes", 1, 2**24) for size in rows)
    return Split(axis=_number(row["axis"], f"{where}.axis"), name=name, parts=parts, sizes=sizes)


def _join(rule: Mapping[str, Any], where: str, made: Pattern) -> Join | None:
    kinds = [kind for kind in ("stack", "concat") if kind in rule]
    if not kinds:
        return None
    if len(kinds) > 1:
        raise PlanError(f"{where}: name stack or concat, not both")
    kind, where = kinds[0], f"{where}.{kinds[0]}"
    row = _object(rule[kind], where, ("axis", "by", "order"), ("axis", "by"))
    by = row["by"]
    if by not in made.names:
        raise PlanError(
            f"{where}.by: {by!r:.80} is no hole of {made.text!r}; legal: "
            f"{', '.join(made.names) or 'none: the pattern has no hole'}"
        )
    order = None
    if "order" in row:
        words = _list(row["order"], f"{where}.order")
        order = tuple(_value(word, f"{where}.order") for word in words)
        if len(set(order)) < len(order):
            raise PlanError(f"{where}.order names a value twice")
    return Join(kind=kind, axis=_number(row["axis"], f"{where}.axis"), by=by, order=order)
