"""docs/faults_ios.md has every fault that the tests inject; `make ios-faults` writes it."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[2] / "docs" / "faults_ios.md"


def test_every_fault_of_the_tests_is_on_the_page() -> None:
    texts = [path.read_text("utf-8") for path in FOLDER.glob("test_ios_*.py")]
    pattern = r'saw: Saw[^)]*\) -> None:\n    """(.*?)"""'
    faults = {fault for text in texts for fault in re.findall(pattern, text)}
    lines = PAGE.read_text("utf-8").splitlines()
    rows = {line.split(" | ")[0].removeprefix("| ") for line in lines}
    assert len(faults) > 20
    assert faults <= rows
