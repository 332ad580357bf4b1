"""What the user sees: stages as they pass, tables, and none of the toolchains' chatter."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from mtu_export.spec import MtuExportWarning

_SLOW_SECONDS = 2.0


class Console:
    """The terminal's standard error, kept apart from what libraries print.

    Inside :meth:`quiet`, file descriptors 1 and 2 lead into a file, so that even C++ code is
    silent; stages go to the real terminal. ``verbose`` lets everything through.
    """

    def __init__(self, *, verbose: bool = False, silent: bool = False) -> None:
        self.verbose, self.silent = verbose, silent
        self.stream = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
        weakref.finalize(self, self.stream.close)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep standard output and standard error of this process off the screen.

        Warnings of this package are shown.
        """
        if self.verbose:
            yield
            return
        with self._own_warnings(), tempfile.TemporaryFile() as sink:
            sys.stdout.flush()
            sys.stderr.flush()
            saved = os.dup(1), os.dup(2)
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            text = io.TextIOWrapper(sink, encoding="utf-8", errors="replace", write_through=True)
            try:
                with redirect_stdout(text), redirect_stderr(text):
                    yield
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                for number, descriptor in enumerate(saved, 1):
                    os.dup2(descriptor, number)
                    os.close(descriptor)

    @contextmanager
    def _own_warnings(self) -> Iterator[None]:
        with warnings.catch_warnings():
            warnings.simplefilter("always", MtuExportWarning)
            show, shown = warnings.showwarning, set()

            def show_ours(message: Warning | str, category: type[Warning], *rest: Any) -> None:
                if not issubclass(category, MtuExportWarning):
                    show(message, category, *rest)
                elif str(message) not in shown:
                    shown.add(str(message))
                    self.warn(str(message))

            warnings.showwarning = show_ours
            yield

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show that a stage runs, then how long it took; a ``Watch`` of the exporter."""
        if self.silent:
            yield
            return
        from rich.console import Console as Rich
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.text import Text

        name = plain(name)
        rich = Rich(file=self.stream, highlight=False)
        text = TextColumn("{task.description}", markup=False)
        columns = SpinnerColumn(), text, TimeElapsedColumn()
        start = time.monotonic()
        with Progress(
            *columns,
            console=rich,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not rich.is_terminal,
        ) as progress:
            progress.add_task(name, total=None)
            yield
        seconds = time.monotonic() - start
        took = f"{seconds:.0f} s" if seconds >= _SLOW_SECONDS else ""
        line = Text.assemble(("✓ ", "green"), name, (f" {took}" if took else "", "dim"))
        rich.print(line, soft_wrap=True)

    @contextmanager
    def progress(self, name: str) -> Iterator[Callable[..., None]]:
        """A bar that is told how many of how many are done, and a note to show behind its name."""
        from rich.console import Console as Rich
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        rich = Rich(file=self.stream, highlight=False)
        text = TextColumn("{task.description}", markup=False)
        columns = text, BarColumn(), MofNCompleteColumn(), Remaining()
        with Progress(
            *columns,
            console=rich,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=self.silent or not rich.is_terminal,
        ) as bar:
            job = bar.add_task(plain(name), total=None)

            def advance(number: int, count: int, note: str = "") -> None:
                description = plain(f"{name} {note}".strip())
                bar.update(job, completed=number, total=count, description=description)

            yield advance

    @contextmanager
    def steps(self) -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
        """Two functions of a line: a step, which a log shows too, and a detail of the last one."""
        from rich.console import Console as Rich

        rich = Rich(file=self.stream, highlight=False)
        if self.silent or not rich.is_terminal:
            yield self.say, lambda _: None
            return
        current = ""
        with rich.status("") as status:

            def step(line: str) -> None:
                nonlocal current
                current = plain(line)
                status.update(current)

            yield step, lambda line: status.update(f"{current}: {plain(line)}")

    def say(self, line: str, *, always: bool = False) -> None:
        """One line where no bar is seen: in a log file or a pipe; ``always``: on a terminal too."""
        if not self.silent and (always or not self.stream.isatty()):
            self.stream.write(f"{plain(line)}\n")
            self.stream.flush()

    def warn(self, line: str) -> None:
        """One line on the terminal's standard error."""
        self.stream.write(f"warning: {plain(line)}\n")
        self.stream.flush()


def plain(text: str) -> str:
    """``text`` without what a terminal would obey: control characters and lone surrogates."""
    return "".join(c if c.isprintable() else "?" for c in text)


def table(head: Sequence[str], lines: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Print one table on standard output."""
    from rich.console import Console as Rich
    from rich.table import Table
    from rich.text import Text

    # A pipe or a log has no width of its own: let no column be cut there.
    rich = Rich(highlight=False, width=None if sys.stdout.isatty() else 160)
    title_text = Text(plain(title)) if title is not None else None
    grid = Table(*head, title=title_text, title_justify="left")
    for line in lines:
        grid.add_row(*(Text(plain(cell)) for cell in line))
    rich.print(grid)
