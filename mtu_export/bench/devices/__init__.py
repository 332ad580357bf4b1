"""Devices: what runs jobs. This host, a phone behind adb, a browser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from mtu_export.bench.job import Job, Result
from mtu_export.bench.record import DeviceRecord, DeviceState
from mtu_export.bundle import Bundle
from mtu_export.spec import DeviceError

Progress = Callable[[str], None]
"""Called with one line on what a device does."""


class DeviceLost(DeviceError):
    """The device went away: what is measured so far stays, the rest is not run."""


class Device(Protocol):
    """What takes jobs and gives results; used as a context manager by ``bench/suite.py``."""

    @property
    def name(self) -> str:
        """The device and what runs jobs there: kept results of another name are not taken."""
        ...

    def describe(self) -> DeviceRecord:
        """What it is; raises ``DeviceError`` where it does not answer."""
        ...

    def refuses(self, bundle: Bundle) -> str | None:
        """Why this device cannot run a bundle, in one line; None where it can."""
        ...

    def prepare(self, bundles: Sequence[Bundle]) -> None:
        """Put what is missing there on the device. Raises ``DeviceError``."""
        ...

    def run(self, job: Job) -> Result:
        """Run a job in a process of its own.

        A job that fails, crashes or is killed is a result with ``status`` "failed" and its reason.
        Raises ``DeviceLost`` where the device is gone.
        """
        ...

    def state(self, *, wait: bool = False) -> DeviceState:
        """Heat, battery and clocks now; ``wait``: first until it is cool, up to a limit."""
        ...

    def close(self) -> None:
        """Remove what was put on the device; safe to call twice."""
        ...
