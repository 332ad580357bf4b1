"""Write the schemas of runtime/ out of the models by which files are read.

python benchmarks/schema.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtu_export import bundle
from mtu_export.bench import record

RUNTIME = Path(__file__).parent.parent / "runtime"
FILE = RUNTIME / "manifest.schema.json"
BENCH_FILE = RUNTIME / "bench.schema.json"


def text(schema: Mapping[str, Any] | None = None) -> str:
    """A file's text; the manifest's by default."""
    return json.dumps(schema or bundle.json_schema(), indent=2) + "\n"


def main() -> None:
    """Rewrite the files."""
    RUNTIME.mkdir(exist_ok=True)
    FILE.write_text(text(), "utf-8")
    BENCH_FILE.write_text(text(record.json_schema()), "utf-8")


if __name__ == "__main__":
    main()
