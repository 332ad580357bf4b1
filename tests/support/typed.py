"""A command line as a user types it."""

from __future__ import annotations

import sys

import pytest

from mtu_export import cli


def run(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``mtu-export WORDS``."""
    monkeypatch.setattr(sys, "argv", ["mtu-export", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capfd.readouterr()
    return int(stop.value.code or 0), out, err
