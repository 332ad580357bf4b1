"""Write docs/faults_ios.md: what goes wrong with an iPhone, and the line that the user sees.

    python benchmarks/ios_faults.py

The lines are those of `tests/bench/ios`, which injects each fault into fakes of devicectl and
pymobiledevice3 with their documented JSON and errors.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "faults_ios.md"
TOOLS = ("devicectl", "pymobiledevice3")
HEAD = """# Faults of an iPhone, as users see them

Made by `make ios-faults`, which injects each fault into fakes of devicectl and pymobiledevice3 with
their documented JSON and errors. PHONE and ID stand for what differs. No fault was made on a phone.

| fault | with | what the user sees |
|---|---|---|
"""


def page(notes: Sequence[tuple[str, str, str]]) -> str:
    """The page, of (fault, program, line) in order; a line of both programs is one row."""
    rows: dict[tuple[str, str], list[str]] = {}
    for fault, tool, line in notes:
        rows.setdefault((fault, line.replace("|", "\\|")), []).append(tool)
    order = list(dict.fromkeys(fault for fault, _, _ in notes))
    lines = [
        f"| {fault} | {'both' if {*tools} == {*TOOLS} else ', '.join(tools)} | {line} |"
        for (fault, line), tools in sorted(rows.items(), key=lambda row: order.index(row[0][0]))
    ]
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    """Run the tests and rewrite the page."""
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes"
        command = [sys.executable, "-m", "pytest", "-q", "tests/bench/ios"]
        environment = {**os.environ, "MTU_FAULTS": str(notes)}
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        texts = notes.read_text("utf-8").splitlines()
    PAGE.write_text(page([tuple(json.loads(text)) for text in texts]), "utf-8")


if __name__ == "__main__":
    main()
