"""Regular expressions from files and from the command line, matched in linear time by RE2.

Python's own engine backtracks: ``(.|.)*x`` takes twice as long for each letter that does not match.
"""

from __future__ import annotations

from typing import Protocol, cast

LONGEST = 300
"""Characters of a pattern."""
_MEMORY = 1 << 17
"""Bytes that RE2 spends on one pattern, its program and its cache of states."""


class Pattern(Protocol):
    """A compiled pattern: RE2's, with the methods of the standard library's."""

    programsize: int
    """Instructions; a match takes at most as many steps for each letter of the text."""

    def match(self, text: str) -> object | None:
        """Match at the beginning of ``text``."""
        ...

    def fullmatch(self, text: str) -> object | None:
        """Match all of ``text``."""
        ...


def compile_pattern(source: str, template: str = "{}") -> Pattern:
    """Compile ``source``, put into ``template``, with the meaning that Python's ``re`` gives it.

    Raises ``ValueError`` with the reason: no regular expression, or one with backreferences,
    lookaround, or repetitions too large for linear time; see ``LONGEST`` too.
    """
    import re2

    if not 0 < len(source) <= LONGEST:
        raise ValueError(f"it must have 1 to {LONGEST} characters")
    for text in ("{,", "[:"):
        if text in source:  # RE2 and Python read them differently
            raise ValueError(f"{text!r} has different meanings in RE2 and in Python")
    options = re2.Options()
    options.max_mem = _MEMORY
    options.log_errors = False
    try:
        return cast(Pattern, re2.compile(template.format(source), options))
    except UnicodeError as error:
        raise ValueError(str(error)) from None
    except re2.error as error:
        reason = error.args[0] if error.args else b""
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(text or "no reason given") from None
