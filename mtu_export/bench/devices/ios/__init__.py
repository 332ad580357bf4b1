"""An iPhone or iPad with the bench app: ``--device ios`` and ``--device ios:UDID``."""

from __future__ import annotations

from mtu_export.bench.devices.ios.device import IosDevice, connect

__all__ = ["IosDevice", "connect"]
