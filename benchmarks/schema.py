"""Write runtime/manifest.schema.json out of the tables by which bundles are read.

python benchmarks/schema.py
"""

from __future__ import annotations

import json
from pathlib import Path

from mtu_export import bundle

FILE = Path(__file__).parent.parent / "runtime" / "manifest.schema.json"


def text() -> str:
    """The file's text."""
    return json.dumps(bundle.json_schema(), indent=2) + "\n"


def main() -> None:
    """Rewrite the file."""
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text(), "utf-8")


if __name__ == "__main__":
    main()
