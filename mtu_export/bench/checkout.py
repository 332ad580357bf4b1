"""The commit of the code that measures, where it runs from a checkout."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def head_commit() -> str | None:
    """The checkout's commit, with ``+`` where files differ from it; None for an installed wheel."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return None
    head, changes = (
        subprocess.run(  # noqa: S603
            [git, *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    )
    if head.returncode:
        return None
    return head.stdout.strip() + "+" * bool(changes.stdout.strip())
