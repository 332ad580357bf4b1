"""Bundles of the embedded model, exported once and kept below ~/.cache/mtu-export/phones.

python -m tests.support.exports TARGET...    export those of these targets, before a test asks
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from filelock import FileLock

NAMED = {"executorch": "MTU_PTE_BUNDLE"}
"""Variables that name a bundle of all tasks in place of an export."""


@cache
def all_tasks(target: str, scheme: str = "int8") -> Path:
    """The bundle of the embedded model's tasks; one of another code or version is exported anew."""
    named = os.environ.get(NAMED.get(target, ""))
    if named:
        return Path(named)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "mtu-export" / "phones" / f"{target}-{scheme}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mtu_export", target, "--all-tasks", "--scheme", scheme]
    with FileLock(folder.with_suffix(".lock")):
        for how in ("--skip-existing", "--force"):
            done = subprocess.run(
                [*command, how, "-o", str(folder)], capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                return folder
    raise AssertionError(done.stderr[-2000:])


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(all_tasks(name))
