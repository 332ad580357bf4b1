"""A child process under a deadline: slow is told from stuck, and what it writes is limited."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, Queue
from typing import IO, Any

_CHUNK = 65_536
_LONGEST_LINE = 10_000

Chunks = Queue[tuple[int, bytes]]


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a process wrote; ``stopped`` says why it was killed, None where it ended by itself."""

    code: int | None
    out: bytes
    err: bytes
    stopped: str | None = None


@contextmanager
def reading(
    command: Sequence[str], *, stdin: int = subprocess.DEVNULL
) -> Iterator[tuple[subprocess.Popen[bytes], Chunks]]:
    """A process and the chunks of its stdout (0) and stderr (1); an empty chunk is the end.

    It is killed at the end of the context. It has a session of its own, so that Ctrl-C in the
    terminal reaches its parent alone. Raises ``OSError`` where it does not start.
    """
    pipe: Any = subprocess.PIPE
    process = subprocess.Popen(  # noqa: S603
        command, stdin=stdin, stdout=pipe, stderr=pipe, start_new_session=True
    )
    chunks: Chunks = Queue(maxsize=64)
    assert process.stdout is not None
    assert process.stderr is not None
    readers = [
        threading.Thread(target=_pass, args=(stream, number, chunks), daemon=True)
        for number, stream in enumerate((process.stdout, process.stderr))
    ]
    for reader in readers:
        reader.start()
    try:
        yield process, chunks
    finally:
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()
        process.kill()
        process.wait()
        limit = time.monotonic() + 2  # another process may hold the pipes
        while any(reader.is_alive() for reader in readers) and time.monotonic() < limit:
            with suppress(Empty):
                chunks.get(timeout=0.02)


def _pass(stream: IO[bytes], number: int, chunks: Chunks) -> None:
    with stream:
        while chunk := os.read(stream.fileno(), _CHUNK):
            chunks.put((number, chunk))
    chunks.put((number, b""))


def read(
    command: Sequence[str],
    *,
    seconds: float,
    patience: float | None = None,
    limit: int,
    on_line: Callable[[str], None] | None = None,
) -> Output:
    """Run a command and read what it writes.

    It is killed after ``seconds``, after ``patience`` without output, and after ``limit`` bytes of
    either stream. ``on_line`` gets each line as it comes. Raises ``OSError`` where it does not
    start.
    """
    with reading(command) as (process, chunks):
        streams, stopped = _collect(chunks, seconds, patience, limit, on_line)
        code = None
        if stopped is None:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=10)
        return Output(code=code, out=streams[0], err=streams[1], stopped=stopped)


def _collect(
    chunks: Chunks,
    seconds: float,
    patience: float | None,
    limit: int,
    on_line: Callable[[str], None] | None,
) -> tuple[tuple[bytes, bytes], str | None]:
    """Both streams, and why reading stopped before their end."""
    streams, lines = (bytearray(), bytearray()), [bytearray(), bytearray()]
    deadline = time.monotonic() + seconds
    stopped, open_streams = None, 2
    while open_streams and stopped is None:
        left = deadline - time.monotonic()
        wait = left if patience is None else min(left, patience)
        try:
            number, chunk = chunks.get(timeout=max(wait, 0.001))
        except Empty:
            late = wait == left
            stopped = f"no end after {seconds:g} s" if late else f"nothing for {patience:g} s"
            break
        open_streams -= not chunk
        streams[number].extend(chunk[: limit - len(streams[number]) + 1])
        if len(streams[number]) > limit:
            stopped = f"more than {limit:,} bytes"
        if on_line is not None:
            *whole, rest = (lines[number] + chunk).split(b"\n")
            lines[number] = rest[:_LONGEST_LINE]
            for line in whole:
                on_line(line[:_LONGEST_LINE].decode("utf-8", "replace"))
    return (bytes(streams[0]), bytes(streams[1])), stopped
