"""Chromium without a window, for tests and benchmarks: a browser for each page, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

FLAGS = (
    "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip
SOFTWARE_GPU = (
    "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan",
)  # fmt: skip
"""WebGPU on the processor: right, and slow."""


@contextmanager
def browsers() -> Iterator[Browsers]:
    """Browsers that end with the context, with all their processes."""
    started = Browsers()
    try:
        yield started
    finally:
        started.end()


class Browsers:
    """Those that run."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def open(self, program: str, url: str, profile: Path, flags: Sequence[str] = ()) -> None:
        """Open a page in a new browser; ``profile`` is its folder."""
        line = [program, *FLAGS, *flags, f"--user-data-dir={profile}", url]
        self._processes.append(
            subprocess.Popen(  # noqa: S603
                line,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def end(self) -> None:
        """End them; each is a process group of its own."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes.clear()
