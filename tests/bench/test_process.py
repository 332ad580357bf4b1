"""What a command costs, of commands whose cost is known."""

from __future__ import annotations

import sys
from pathlib import Path

from mtu_export.bench import process

MEGABYTE = 1_000_000


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_stages_and_memory(tmp_path: Path) -> None:
    code = """
import sys, time
print("✓ small", file=sys.stderr, flush=True)
block = b"x" * 200_000_000
time.sleep(1.0)
print("✓ large 3 s", file=sys.stderr, flush=True)
"""
    cost = process.measure(python(code), tmp_path / "log", {"PYTHONIOENCODING": "utf-8"})
    assert cost.exit == 0
    assert cost.stages == {"large": 3}
    assert cost.anonymous["large"] > 200 * MEGABYTE
    assert cost.peak_rss > 200 * MEGABYTE
    assert cost.wall_s > 1.0
    assert cost.error is None


def test_a_failure_has_its_line(tmp_path: Path) -> None:
    code = "import sys; sys.stderr.write('error: no such task\\n'); sys.exit(2)"
    cost = process.measure(python(code), tmp_path / "log")
    assert (cost.exit, cost.error) == (2, "error: no such task")


def test_a_signal_is_a_negative_exit(tmp_path: Path) -> None:
    cost = process.measure(python("import os; os.kill(os.getpid(), 9)"), tmp_path / "log")
    assert cost.exit == -9


def test_processor_time_is_the_childs(tmp_path: Path) -> None:
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    assert process.measure(python(busy), tmp_path / "log").cpu_s >= 0.5
    assert process.measure(python("pass"), tmp_path / "log").cpu_s < 0.5
