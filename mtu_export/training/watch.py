"""What a run shows and how it is stopped."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol


class Console(Protocol):
    """What of ``mtu_export.cli.console.Console`` a run uses."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Show a stage while it runs."""
        ...

    def progress(self, name: str) -> AbstractContextManager[Callable[..., None]]:
        """A bar, told how many of how many are done, and a note."""
        ...

    def say(self, line: str, *, always: bool = False) -> None:
        """A line for a log file, where no bar is seen."""
        ...

    def warn(self, line: str) -> None:
        """A line that the user must see."""
        ...


class Silent:
    """A console that shows nothing."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()

    def progress(self, name: str) -> AbstractContextManager[Callable[..., None]]:
        """Nothing."""
        return nullcontext(lambda *_: None)

    def say(self, line: str, *, always: bool = False) -> None:
        """Nothing."""

    def warn(self, line: str) -> None:
        """Nothing."""


class Stop:
    """Whether the user has asked to stop."""

    requested = False


@contextmanager
def ctrl_c() -> Iterator[Stop]:
    """Take the first Ctrl-C as a wish to stop after the step; a second one interrupts at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)
    if before in (signal.SIG_IGN, None):
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
