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
WEB_FILE = RUNTIME / "web" / "manifest_schema.js"
SWIFT_FILE = RUNTIME / "ios" / "Sources" / "MTUCore" / "Support" / "ManifestSchema.swift"


def text(schema: Mapping[str, Any] | None = None) -> str:
    """A file's text; the manifest's by default."""
    return json.dumps(schema or bundle.json_schema(), indent=2) + "\n"


def module() -> str:
    """The manifest's schema as a module of runtime/web, which has no build step."""
    schema = json.dumps(bundle.json_schema(), separators=(",", ":"))
    kind = '/** @type {import("./schema.js").Schema} */'
    return (
        f"// Written by `make schema`: the manifest's schema.\n{kind}\nexport default {schema};\n"
    )


def swift() -> str:
    """The manifest's schema as a text of runtime/ios, whose package has no resources."""
    schema = json.dumps(bundle.json_schema(), separators=(",", ":"))
    return (
        "// swift-format-ignore-file\n"
        "// Written by `make schema`: the manifest's schema.\n"
        f'let manifestSchema = ##"{schema}"##\n'
    )


def main() -> None:
    """Rewrite the files."""
    RUNTIME.mkdir(exist_ok=True)
    FILE.write_text(text(), "utf-8")
    BENCH_FILE.write_text(text(record.json_schema()), "utf-8")
    WEB_FILE.write_text(module(), "utf-8")
    SWIFT_FILE.write_text(swift(), "utf-8")


if __name__ == "__main__":
    main()
