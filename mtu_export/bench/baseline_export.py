"""Exports one baseline, in a process of its own.

``python -m mtu_export.bench.baseline_export JSON``: a ``kind`` ("dense", "unfolded", "plain" or
"single") and ``options``, fields of ``ExportOptions``. Stages go to standard error, a line each;
that of a failure begins with "error: ", and the exit codes are those of the command line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtu_export.spec import MtuExportError, Plan

_ERROR = "error: "
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


def reason_of(log: Path) -> str:
    """Why an export failed, by what it wrote: the line of its error, else the last one."""
    lines = log.read_text("utf-8", "replace").splitlines() or ["no message"]
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    return (errors or lines)[-1][:500]


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
        sys.stderr.write(f"{_ERROR}{error}\n")
        return error.exit_code
    except MemoryError:
        sys.stderr.write(f"{_ERROR}not enough memory\n")
        return 6
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
