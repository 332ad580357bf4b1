"""HTML and SVG elements. Text is escaped here and nowhere else."""

from __future__ import annotations

import html


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def printable(text: str) -> str:
    """Text without control characters, marks that turn its direction, and lone surrogates."""
    return "".join(c if c.isprintable() else "?" for c in text)


def element(
    name: str, *children: str | float | None, **attributes: str | float | bool | None
) -> Markup:
    """An element; what is not ``Markup`` is text. ``class_`` is ``class``, ``_`` in names ``-``.

    Attributes that are None or False are left out; True is an attribute without a value.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{html.escape(printable(str(value)))}"')
    inside = "".join(text(child) for child in children if child is not None)
    return Markup(f"<{' '.join(words)}>{inside}</{name}>")


def text(child: str | float) -> str:
    """A child as HTML has it."""
    return child if isinstance(child, Markup) else html.escape(printable(str(child)), quote=False)


def join(*parts: str) -> Markup:
    """Children without an element around them."""
    return Markup("".join(text(part) for part in parts))
