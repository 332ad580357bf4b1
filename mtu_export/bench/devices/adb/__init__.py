"""A phone behind the adb client: ``--device adb`` and ``--device adb:SERIAL``."""

from __future__ import annotations

from mtu_export.bench.devices.adb.app import AppDevice
from mtu_export.bench.devices.adb.app import connect as connect_app
from mtu_export.bench.devices.adb.device import AdbDevice, connect

__all__ = ["AdbDevice", "AppDevice", "connect", "connect_app"]
