"""A map in JSON: which tensor of another layout becomes which tensor here.

A map is declarative and read strictly: nothing in it is executed, and its patterns are not regular
expressions; matching is at most quadratic in a name's length. Mistakes raise ``PlanError`` with the
place and what is legal. docs/adopt.md describes the language.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    model_validator,
)

from mtu_export.checkpoint.folder import read_json
from mtu_export.checkpoint.validation import StrictModel, legal, refused, validate
from mtu_export.spec import PlanError

LONGEST = 400
"""Characters of a pattern, a template, or a tensor's name."""
_MOST = 512
_HOLES = 8
_MAP_BYTES = 4_000_000
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")
_WORD_IS = "letters, digits and '_', at most 32, no digit first"
_BRACES = re.compile(r"\{([^{}]*)\}")


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


# ------------------------------------------------------------------------ patterns and templates


def pattern(value: object) -> Pattern:
    """Parse and check a pattern. Raises ``ValueError``."""
    tokens = _tokens(value, _hole)
    parsed = Pattern(text=str(value), tokens=tokens)
    if len(set(parsed.names)) < len(parsed.names):
        raise refused(f"{value!r} has two holes of one name")
    if len(parsed.names) > _HOLES:
        raise refused(f"{value!r} has more than {_HOLES} holes")
    for first, second in pairwise(tokens):
        both = isinstance(first, Hole) and isinstance(second, Hole)
        if both and not (first.choices or second.choices):  # type: ignore[union-attr]
            raise refused(f"{value!r}: nothing tells where the first of two holes ends")
    return parsed


def _template(value: object) -> Template:
    names = (token.name for token in _tokens(value, _plain) if isinstance(token, Hole))
    return Template(text=str(value), names=frozenset(names))


def _tokens(text: object, hole: Callable[[str], Hole]) -> tuple[str | Hole, ...]:
    if not isinstance(text, str) or not 1 <= len(text) <= LONGEST:
        raise refused(f"must be a string of 1 to {LONGEST} characters")
    tokens: list[str | Hole] = []
    for i, piece in enumerate(_BRACES.split(text)):
        if i % 2:
            tokens.append(hole(piece))
        elif "{" in piece or "}" in piece:
            raise refused(f"{text!r} has a brace without its other half")
        elif piece:
            tokens.append(piece)
    return tuple(tokens)


def _hole(text: str) -> Hole:
    """``name``, ``name...`` or ``name:one|other``."""
    name, colon, choices = text.partition(":")
    if colon:
        return Hole(name=_word(name), choices=tuple(choices.split("|")))
    return Hole(name=_word(name.removesuffix("...")), rest=name.endswith("..."))


def _plain(text: str) -> Hole:
    return Hole(name=_word(text))


def _word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise refused(f"{text!r:.80} names no hole: {_WORD_IS}")
    return text


# ------------------------------------------------------------------------------------- the model


def _distinct(values: Sequence[object]) -> Sequence[object]:
    if len(set(values)) < len(values):
        raise refused("must name each value once")
    return values


def _all_axes(axes: Sequence[int]) -> Sequence[int]:
    if sorted(axes) != list(range(len(axes))):
        raise refused("must name every axis once")
    return axes


def _by_number(value: object) -> object:
    """A list of translations as those of ``0``, ``1``, ..."""
    return {str(i): word for i, word in enumerate(value)} if isinstance(value, list) else value


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


Axis = Annotated[int, Field(ge=0, le=7), legal("an integer from 0 to 7")]
Parts = Annotated[int, Field(ge=1, le=_MOST), legal(f"an integer from 1 to {_MOST}")]
Size = Annotated[int, Field(ge=1, le=2**24), legal(f"an integer from 1 to {2**24}")]
Constant = Annotated[int, Field(ge=0, le=1), legal("an integer from 0 to 1")]
Word = Annotated[str, Field(pattern=f"^{_WORD.pattern}$"), legal(f"a hole's name: {_WORD_IS}")]
Value = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$"),
    legal("1 to 100 letters, digits, '.', '-' and '_'"),
]
Translation = Annotated[dict[str, Value], Field(max_length=_MOST), BeforeValidator(_by_number)]
Source = Annotated[Pattern, PlainValidator(pattern)]
Target = Annotated[Template, PlainValidator(_template)]
_LIST = Field(min_length=1, max_length=_MOST)
_ANY_LIST = Field(max_length=_MOST)


class Split(StrictModel):
    """One tensor into several along ``axis``; without parts and sizes the axis is removed."""

    axis: Axis
    name: Word = Field(alias="as")
    parts: Parts | None = None
    sizes: Annotated[Sequence[Size], _LIST] | None = None

    @model_validator(mode="after")
    def _parts_or_sizes(self) -> Split:
        if self.parts is not None and self.sizes is not None:
            raise refused("name parts or sizes, not both")
        return self


class Join(StrictModel):
    """Several tensors into one along ``axis``, by the value of the hole ``by``."""

    kind: ClassVar[str]
    axis: Axis
    by: str
    order: Annotated[Sequence[Value], _LIST, AfterValidator(_distinct)] | None = None


class Stack(Join):
    """A join that adds the axis."""

    kind = "stack"


class Concat(Join):
    """A join that extends the axis."""

    kind = "concat"


class Rule(StrictModel):
    """One entry of ``rules``; its operations apply in the order of the fields."""

    pattern: Source = Field(alias="from")
    targets: Annotated[Sequence[Target], _LIST, BeforeValidator(_as_list)] = Field(alias="to")
    squeeze: Annotated[Sequence[Axis], _LIST, AfterValidator(_distinct)] | None = None
    transpose: Annotated[Sequence[Axis], _LIST, AfterValidator(_all_axes)] | None = None
    split: Split | None = None
    swap_halves: Axis | None = None
    stack: Stack | None = None
    concat: Concat | None = None

    @property
    def join(self) -> Join | None:
        """The one operation that joins."""
        return self.stack or self.concat

    @model_validator(mode="after")
    def _validate_holes(self) -> Rule:
        """Split and join name holes of the pattern; targets name what is left of them."""
        split, join, source = self.split, self.join, self.pattern
        if self.stack and self.concat:
            raise refused("name stack or concat, not both")
        if split and split.name in source.names:
            raise refused(f"split.as: {split.name!r} is already a hole of {source.text!r}")
        if join and join.by not in source.names:
            raise refused(
                f"{join.kind}.by: {join.by!r:.80} is not a hole of {source.text!r}; legal: "
                f"{', '.join(source.names) or 'none: the pattern has no hole'}"
            )
        names = [name for name in source.names if join is None or name != join.by]
        names += [split.name] if split else []
        for target in self.targets:
            for name in sorted(target.names - {*names}):
                raise refused(
                    f"to: {target.text!r}: nothing is called {name!r}; legal: "
                    f"{', '.join(names) or 'no hole'}"
                )
            if split and split.name not in target.names:
                raise refused(f"to: {target.text!r} lacks {{{split.name}}} of the split")
        return self


class Fill(StrictModel):
    """Targets that are filled with a constant."""

    pattern: Source = Field(alias="to")
    value: Constant


class Map(StrictModel):
    """A whole map: ``values`` translates the values of a hole, ``fill`` has constants by target."""

    config: dict[str, Any] = Field(default_factory=dict)
    values: dict[Word, Translation] = Field(default_factory=dict)
    rules: Annotated[Sequence[Rule], _LIST]
    drop: Annotated[Sequence[Source], _ANY_LIST] = ()
    fill: Annotated[Sequence[Fill], _ANY_LIST] = ()


def read(path: Path) -> Map:
    """The map of a JSON file. Raises ``PlanError``."""
    if not os.path.lexists(path):
        raise PlanError(f"no map file {str(path)[:200]!r}")
    document = read_json(path, limit=_MAP_BYTES, error=PlanError)
    return validate(Map, document, PlanError, str(path))


def parse(document: object) -> Map:
    """The map of JSON data. Raises ``PlanError``."""
    return validate(Map, document, PlanError)
