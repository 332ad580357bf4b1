"""Other libraries' attributes and packages, replaced or hidden for a while."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Set ``owner.name`` to ``make`` of what it is, and back at the end.

    Does nothing where ``owner`` has no such attribute of its own: the library is another version.
    """
    if name not in vars(owner):
        yield
        return
    before = vars(owner)[name]
    setattr(owner, name, make(before))
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def hidden(packages: Collection[str]) -> Iterator[None]:
    """Let packages that were not imported yet look as if they were not installed."""
    names = [name for name in packages if name not in sys.modules]
    modules: dict[str, Any] = sys.modules
    for name in names:
        modules[name] = None
    try:
        yield
    finally:
        for name in names:
            if modules.get(name) is None:
                modules.pop(name, None)
