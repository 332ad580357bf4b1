"""The small world from nothing to its table: parts, dense UNet, single tasks, MTU, pictures.

    python -m benchmarks.shapes small
    python -m benchmarks.shapes full --minutes 25 --piece 10

Everything lies in ``~/.cache/mtu-export/shapes/SIZE``, states of UNets in
``~/.cache/mtu-export/training``; what is done is not done again, and what was stopped goes on. A
recipe is also a config of ``mtu-export train``. ``--minutes`` scales the recipes' steps to a time
measured here; ``--piece`` stops after so many minutes, to go on later.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from pathlib import Path

from benchmarks.shapes import building, grids, guidance, pace, shipping, table
from benchmarks.shapes.cases import TASKS
from benchmarks.shapes.world import WORLDS
from mtu_export import training
from mtu_export.cli import plot
from mtu_export.cli.console import Console
from mtu_export.exporter import inspection
from mtu_export.spec import Interrupted, MtuExportError

CONFIGS = Path(__file__).parent / "configs"
CACHE = Path.home() / ".cache" / "mtu-export" / "shapes"
ORDER = ("t2i", "edit", "sr", "inpaint", "mtu-n1", "mtu-n4")


def main() -> None:
    """Do what is not done yet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shapes")
    parser.add_argument("size", choices=[path.name for path in sorted(CONFIGS.iterdir())])
    parser.add_argument("--only", choices=("parts", *ORDER, "guidance", "table", "pictures"))
    parser.add_argument("--rows", default="", help="of the table, those with this in their name")
    parser.add_argument("--minutes", type=float, help="of all recipes; default: their own steps")
    parser.add_argument("--piece", type=float, help="minutes until this call stops")
    args = parser.parse_args()
    if args.piece:
        alarm = threading.Timer(60 * args.piece, os.kill, (os.getpid(), signal.SIGINT))
        alarm.daemon = True
        alarm.start()
    try:
        run(args.size, CACHE / args.size, args.only, args.minutes, args.rows)
    except (Interrupted, KeyboardInterrupt) as stopped:
        raise SystemExit(f"stopped; the same command goes on. {stopped}") from None
    except (MtuExportError, FileNotFoundError) as error:
        before = f"`python -m benchmarks.shapes {args.size}` does what comes before"
        raise SystemExit(f"{error}; {before}") from None


def run(size: str, root: Path, only: str | None, minutes: float | None, rows: str = "") -> None:
    """The stages of a size, or one of them."""
    configs = CONFIGS / size
    if only in (None, "parts"):
        building.build(size, configs / "parts.toml", root)
    recipes = {name: training.read(configs / f"{name}.toml") for name in ORDER}
    if minutes is not None:
        pace.measure(recipes, root, minutes)
    recipes = {name: pace.apply(recipe, name, root) for name, recipe in recipes.items()}
    for name, recipe in recipes.items():
        if only in (None, name) and not (recipe.output / "model_index.json").is_file():
            training.train(recipe, console=Console())
    if only in (None, "guidance"):
        guidance.choose(size, root, {task: table.single(root, task) for task in TASKS})
    if only in (None, "table"):
        shipping.ship(root)
        table.make(size, root, rows)
    if only in (None, "pictures"):
        grids.all_sheets(size, root)
        world, model = WORLDS[size], root / shipping.SHIPPED
        bundles = {"onnx int8": table.exported(root, "onnx", "int8")}
        picture = table.RESULTS / f"shapes_{size}.png"
        grids.compare(world, model, bundles, dict.fromkeys(TASKS, 3), picture, blocks=2)
        weights = inspection.of_checkpoint(model)["expert weights"]
        plot.heat_map(weights, table.RESULTS / f"shapes_{size}_router.png", force=True)
        done = {name: each for name, each in recipes.items() if each.output.is_dir()}
        card = shipping.card(size, root, done, table.RESULTS)
        (model / "README.md").write_text(card, "utf-8")


if __name__ == "__main__":
    main()
