"""Words that several commands take, and what several print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtu_export.spec.catalog import SCHEMES

if TYPE_CHECKING:
    from mtu_export.bundle import Bundle

Model = Annotated[
    str | None,
    typer.Option("-m", "--model", help="Checkpoint folder or hub id; default: the embedded one."),
]
TaskName = Annotated[
    list[str] | None, typer.Option("--task", help="Task of the checkpoint (see: inspect); repeat.")
]
Out = Annotated[Path | None, typer.Option("-o", "--output", help="Folder to make.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show what the toolchains print.")]
MinPsnr = Annotated[
    float | None, typer.Option("--min-psnr", metavar="DB", help="Replace the scheme's floor.")
]
SchemeName = Annotated[str | None, typer.Option("--scheme", help=f"One of: {', '.join(SCHEMES)}.")]
PROOF_HEAD = ["part", "task", "rung", "PSNR", "floor", "verdict", "runner"]


def print_json(found: Any) -> None:
    """Print JSON on standard output."""
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


def part_sizes(found: Bundle) -> dict[str, str]:
    """Sizes by component, and that of all parts, as tables show them."""
    sizes = {part.component: part.bytes for part in found.parts} | {"pipeline": found.bytes}
    return {name: f"{size / 1e6:.2f} MB" for name, size in sizes.items()}
