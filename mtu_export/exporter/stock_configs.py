"""The configs with which other libraries open the parts of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtu_export import checkpoint
from mtu_export.checkpoint.layout import source_folder
from mtu_export.spec import COMPONENTS, Task


def read(folder: Path, config: Mapping[str, Any], tasks: Sequence[Task]) -> dict[str, Any]:
    """Contents of JSON files, as ``Plan.stock_configs`` has them; those that exist.

    ``config`` is the UNet's in the checkpoint. Its stock config is that of the first task.
    """
    files = {
        "scheduler": folder / "scheduler" / "scheduler_config.json",
        "model_index": folder / "model_index.json",
    }
    for component in COMPONENTS:
        files[component] = folder / source_folder(component) / "config.json"
    del files["unet"]
    channels = config["in_channels"] + tasks[0].channels
    contents = {name: checkpoint.read_json(path) for name, path in files.items() if path.is_file()}
    return {**contents, "unet": checkpoint.stock_config(config, channels)}
