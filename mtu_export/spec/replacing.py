"""Other libraries' attributes and packages, replaced or hidden for a while."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

_ONE_AT_A_TIME = threading.RLock()
"""Held while anything is replaced: what one thread puts back, no other has replaced since."""


@contextmanager
def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Set ``owner.name`` to ``make`` of what it is, and back at the end.

    Does nothing where ``owner`` has no such attribute of its own: the library is another version.
    Another thread that replaces something waits until this one has put it back.
    """
    if name not in vars(owner):
        yield
        return
    with _ONE_AT_A_TIME:
        before = vars(owner)[name]
        setattr(owner, name, make(before))
        try:
            yield
        finally:
            setattr(owner, name, before)


@contextmanager
def hidden(packages: Collection[str]) -> Iterator[None]:
    """Let packages that were not imported yet look as if they were not installed.

    They do so for every thread, so this is for a command, not for a library's function.
    """
    with _ONE_AT_A_TIME:
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
