"""Loss by task, as rows of a CSV file and in TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtu_export.spec import PlanError
from mtu_export.spec.extras import require
from mtu_export.storage import atomic_file

HEAD = ("step", "task", "loss", "lr", "samples_per_second", "seconds")
CSV = "log.csv"


def check(log_with: Sequence[str]) -> None:
    """Raise ``ToolchainMissing`` for a log whose package is not installed."""
    if "tensorboard" in log_with:
        require("tensorboard")


class Log:
    """Rows by step and task; what is after step ``step`` is cut off first."""

    def __init__(self, folder: Path, log_with: Sequence[str], step: int) -> None:
        self.path = folder / CSV if "csv" in log_with else None
        self.board: Any = None
        if self.path is not None:
            _cut(self.path, step)
        if "tensorboard" in log_with:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(
        self, step: int, losses: Mapping[str, float], lr: float, rate: float, seconds: float
    ) -> None:
        """One row a task: mean loss since the last row; ``rate`` is in samples a second."""
        if self.path is not None:
            with self.path.open("a", encoding="utf-8", newline="") as stream:
                writer = csv.writer(stream, lineterminator="\n")
                for task, loss in losses.items():
                    writer.writerow([step, task, loss, lr, round(rate, 2), round(seconds, 2)])
        if self.board is not None:
            for task, loss in losses.items():
                self.board.add_scalar(f"loss/{task}", loss, step)
            self.board.add_scalar("lr", lr, step)
            self.board.add_scalar("samples_per_second", rate, step)

    def close(self) -> None:
        """Write what is still in memory."""
        if self.board is not None:
            self.board.close()


def _cut(path: Path, step: int) -> None:
    """Keep the rows up to a step, whole ones only; whole or not at all."""
    kept = [",".join(HEAD)]
    if path.is_dir():
        raise PlanError(f"{path} is a folder; the log goes there, move it away")
    if path.is_file():
        for line in path.read_text("utf-8", "replace").splitlines(keepends=True)[1:]:
            first = line.partition(",")[0]
            if line.endswith("\n") and first.isdecimal() and int(first) <= step:
                kept.append(line.rstrip("\n"))
    with atomic_file(path) as private:
        private.write_text("\n".join(kept) + "\n", "utf-8")
