"""Held-out removals by the embedded model: input, PyTorch, int8 artefacts, truth.

    python -m benchmarks.shapes.demo FOLDER

``FOLDER`` has the bundles of ``make demo``; ``inpaint.png`` and ``input.png`` are written there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mtu_export.cli.console import Console

with Console().quiet():  # what toolchains print as they are imported
    from torch import Tensor

    from benchmarks.shapes import checks, grids, table
    from benchmarks.shapes.cases import inputs
    from benchmarks.shapes.world import WORLDS
    from mtu_export import checkpoint
    from mtu_export.bundle.images import to_image

_TARGETS, _COUNT = ("onnx", "coreml", "executorch"), 4


def main() -> None:
    """Draw the sheet, and say what it shows and how to make one picture more."""
    world, folder = WORLDS["small"], Path(sys.argv[1])
    bundles = {f"{target} int8": folder / f"inpaint-{target}-int8" for target in _TARGETS}
    out, source = folder / "inpaint.png", folder / "input.png"
    cases = table.held_out(world, "inpaint", _COUNT)
    with Console().quiet():
        columns = grids.compare(world, checkpoint.EMBEDDED, bundles, {"inpaint": _COUNT}, out)
    shown = inputs(world, cases)
    assert shown is not None
    to_image(shown[:1].numpy()).save(source)
    for name, pictures in columns["inpaint"].items():
        measured = checks.measures(world, cases, pictures)
        text = ", ".join(_described(key, values) for key, values in measured.items())
        print(f"{name}: {text}")
    print(f"{_COUNT} removals that no model was trained on: {out}")
    prompt = f'--prompt "{cases[0].prompt}" --image {source}'
    command = Path(sys.executable).with_name("mtu-export")
    here = command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command
    print(f"one more: {here} run {next(iter(bundles.values()))} {prompt} -o out.png")


def _described(name: str, values: Tensor) -> str:
    if checks.is_share(name):
        return f"{name} {int(values.sum())} of {len(values)}"
    return f"{name} {values.mean():.1f} dB"


if __name__ == "__main__":
    main()
