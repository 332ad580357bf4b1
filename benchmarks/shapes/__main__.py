"""The small world from nothing to its table: parts, dense UNet, single tasks, MTU, pictures.

    python -m benchmarks.shapes small [--only parts|t2i|edit|sr|inpaint|mtu-n1|mtu-n4|table]

Everything lies in ``~/.cache/mtu-export/shapes/SIZE``; what is done is not done again, and what was
stopped goes on. A recipe is also a config of ``mtu-export train``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.shapes import building, table
from mtu_export import training
from mtu_export.console import Console

CONFIGS = Path(__file__).parent / "configs"
HOME = Path.home() / ".cache" / "mtu-export" / "shapes"
ORDER = ("t2i", "edit", "sr", "inpaint", "mtu-n1", "mtu-n4")


def main() -> None:
    """Do what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("size", choices=("small", "full"))
    parser.add_argument("--only", choices=("parts", *ORDER, "table"))
    words = parser.parse_args()
    home, configs = HOME / words.size, CONFIGS / words.size
    if words.only in (None, "parts"):
        building.build(words.size, configs / "parts.toml", home)
    for name in ORDER:
        recipe = training.read(configs / f"{name}.toml")
        if words.only in (None, name) and not (recipe.output / "model_index.json").is_file():
            training.train(recipe, console=Console())
    if words.only in (None, "table"):
        table.make(words.size, home)


if __name__ == "__main__":
    main()
