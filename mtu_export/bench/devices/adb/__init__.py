"""A phone behind the adb client: ``--device adb`` and ``--device adb:SERIAL``."""

from __future__ import annotations

from mtu_export.bench.devices.adb.device import AdbDevice, connect

__all__ = ["AdbDevice", "connect"]
