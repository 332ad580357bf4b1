"""Exports one baseline, in a process of its own.

``python -m mtu_export.bench.baseline_export JSON``, with
``{"kind": "dense" | "unfolded" | "plain" | "single", "options": {...}}`` with fields of
``ExportOptions``. Stages go to standard error, a line each; the last line of a failure is its
reason, and the exit codes are those of the command line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mtu_export.spec import MtuExportError, Plan

FLAGS: Mapping[str, Mapping[str, Any]] = {
    "dense": {},
    "single": {},
    "unfolded": {"no_fold": True},
    "plain": {"plain": True, "min_psnr": 0.0},
}
"""Options of each kind; a plain export is kept however far from PyTorch it is."""


def plan_of(kind: str, options: Mapping[str, Any]) -> Plan:
    """The plan of a baseline; raises what ``resolve`` raises."""
    from mtu_export.exporter.options import dense, resolve

    plan = resolve(**{**options, **FLAGS[kind]})
    return dense(plan) if kind == "dense" else plan


@contextmanager
def _stage(name: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    sys.stderr.write(f"{name}: {time.monotonic() - start:.1f} s\n")


def main(arguments: Sequence[str]) -> int:
    """Export; returns the exit code."""
    job = json.loads(arguments[0])
    try:
        from mtu_export import exporter

        exporter.export(plan_of(job["kind"], job["options"]), _stage)
    except MtuExportError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except MemoryError:
        sys.stderr.write("error: not enough memory\n")
        return 6
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
