"""Plots of expert weights and deviations, drawn with matplotlib into one file."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu_export.cli.console import plain
from mtu_export.models.pipeline.anatomy import short
from mtu_export.spec import PlanError, ResourceError
from mtu_export.spec.extras import require
from mtu_export.storage import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
_DPI = 150
_LARGEST = 30_000
"""Pixels of a side."""
_LONGEST = 24
"""Characters of a task's name that are shown."""


def require_writable(path: Path, force: bool) -> None:
    """Refuse a plot that could not be written, before anything is measured for it.

    Raises ``PlanError`` (suffix, folder, an existing file without ``force``) and
    ``ToolchainMissing``.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise PlanError(f"--plot must end in {', '.join(SUFFIXES)}, got {str(path)!r}")
    try:
        if not path.parent.is_dir():
            raise PlanError(f"--plot {str(path)!r}: there is no folder {str(path.parent)!r}")
        if path.is_dir() or path.is_symlink():
            raise PlanError(f"--plot {str(path)!r} is a folder or a link; name a file")
        if path.exists() and not force:
            raise PlanError(f"picture {str(path)!r} exists; choose another --plot or pass --force")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise PlanError(f"--plot {str(path)[:200]!r}: {reason}") from None
    require("matplotlib")


def heat_map(layers: Sequence[Mapping[str, Any]], path: Path, *, force: bool = False) -> None:
    """Expert weights by layer and task, as Fig. 5 of the MTU paper.

    ``layers`` {"layer": path, "tasks": {name: [N weights]}}. One line per layer, one panel per
    task, one column per expert; the colour scale spans the weights, rounded outwards to a tenth.
    """
    labels = [short(plain(layer["layer"])) for layer in layers]
    names = list(layers[0]["tasks"])
    experts = len(layers[0]["tasks"][names[0]])
    values = [value for layer in layers for task in layer["tasks"].values() for value in task]
    low, high = math.floor(10 * min(values)) / 10, math.ceil(10 * max(values)) / 10
    low = low if low < high else 0.0
    longest = max(len(_cut(name)) for name in names)
    cell = max(0.3 if experts <= 16 else 0.15, 0.09 * (longest + 1) / experts)
    size = (2.6 + len(names) * (cell * experts + 0.15), max(2.4, 1.2 + 0.19 * len(layers)))

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        image = None
        for index, (name, panel) in enumerate(zip(names, panels, strict=True)):
            grid = [layer["tasks"][name] for layer in layers]
            image = panel.imshow(grid, vmin=low, vmax=high, aspect="auto", cmap="viridis")
            panel.set_title(_cut(name), fontsize=9)
            step = 1 if cell >= 0.3 else 4
            panel.set_xticks(range(0, experts, step), range(0, experts, step), fontsize=7)
            panel.set_yticks(range(len(layers)), labels, fontsize=7)
            panel.tick_params(length=0, labelleft=index == 0)
        figure.supxlabel("expert", fontsize=9)
        assert image is not None
        bar = figure.colorbar(image, ax=list(panels), aspect=max(25, len(layers)), pad=0.015)
        bar.ax.tick_params(labelsize=7)
        bar.set_label("expert weight", fontsize=8)

    _save(size, draw, path, force)


def bars(
    layers: Sequence[Mapping[str, Any]],
    kinds: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    force: bool = False,
) -> None:
    """Deviation by layer and by kind, as Fig. 2 of the MTU paper.

    ``layers`` {"kind": name, "deviation": ‖θ_f − θ_p‖}, ranked; ``kinds`` the same over all layers
    of a kind.
    """
    names = [entry["kind"] for entry in kinds]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(3, 1))
        colours = {kind: f"C{number % 10}" for number, kind in enumerate(sorted(names))}
        hatches = dict.fromkeys(names, "") | dict.fromkeys(sorted(names)[10:], "////")
        for kind in names:
            places = [index for index, entry in enumerate(layers) if entry["kind"] == kind]
            heights = [layers[index]["deviation"] for index in places]
            left.bar(
                places, heights, width=1.0, color=colours[kind], hatch=hatches[kind], label=kind
            )
        left.set_xlabel("layers, ranked", fontsize=9)
        left.set_ylabel("‖θ_f − θ_p‖", fontsize=9)
        left.legend(fontsize=8, frameon=False)
        left.margins(x=0.01)
        right.barh(
            range(len(names)),
            [entry["deviation"] for entry in kinds],
            color=[colours[kind] for kind in names],
            hatch=[hatches[kind] for kind in names],
        )
        right.set_yticks(range(len(names)), names, fontsize=8)
        right.invert_yaxis()
        right.set_xlabel("all layers of a kind", fontsize=9)
        for panel in (left, right):
            panel.tick_params(labelsize=8)
            panel.spines[["top", "right"]].set_visible(False)

    _save((11.0, 4.5), draw, path, force)


def _cut(name: str) -> str:
    name = plain(name)
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def _save(size: tuple[float, float], draw: Callable[[Any], None], path: Path, force: bool) -> None:
    """Draw into a private file beside ``path``, which takes its place whole or not at all."""
    require_writable(path, force)
    logger = logging.getLogger("matplotlib")  # it says where its font cache is, and why
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure

        # names are text, never formulas, and the same data give the same file
        settings: Any = {"text.parse_math": False, "svg.hashsalt": "mtu-export"}
        with atomic_file(path) as private, mpl.rc_context(settings), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dpi = min(_DPI, _LARGEST / max(size))
            figure = Figure(figsize=size, dpi=dpi, layout="constrained")
            draw(figure)
            figure.savefig(private, format=path.suffix[1:].lower())
            require_writable(path, force)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ResourceError(f"cannot write {path}: {reason}") from error
    finally:
        logger.setLevel(level)
