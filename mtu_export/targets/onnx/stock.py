"""The config files with which optimum and diffusers open an ONNX bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mtu_export.spec import Plan
from mtu_export.spec.catalog import SCHEDULERS, SD_DEFAULT


def write_configs(part: str, plan: Plan, folder: Path) -> None:
    """Write ``config.json`` beside the model, ``model_index.json`` and the scheduler's config.

    Writes nothing for several tasks or for a model that no other library knows.
    """
    stock, pipeline = plan.spec(part).stock, plan.model.stock_pipeline(plan.tasks[0])
    if len(plan.tasks) != 1 or stock is None or pipeline is None:
        return
    _dump(pipeline.configs.get(part, stock.config), folder / part / "config.json")
    scheduler = _scheduler_config(plan, pipeline.scheduler)
    _dump(scheduler, folder / "scheduler" / "scheduler_config.json")
    index: dict[str, Any] = {
        "_class_name": pipeline.class_name,
        "_diffusers_version": version("diffusers"),
        "scheduler": ["diffusers", scheduler.get("_class_name")],
        **pipeline.flags,
    }
    for spec in plan.model.parts:
        if spec.stock is not None and (folder / spec.name).is_dir():
            index[spec.stock.key] = [spec.stock.library, spec.stock.class_name]
    # a tokenizer is written last: its text encoder says whether there will be one
    encoders = [spec.name for spec in plan.model.parts if spec.kind == "text_encoder"]
    for encoder, (name, kind) in zip(encoders, pipeline.tokenizers.items(), strict=True):
        if (folder / encoder).is_dir():
            index[name] = ["transformers", kind]
    _dump(index, folder / "model_index.json")


def _scheduler_config(plan: Plan, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the manifest's scheduler: that of ``--scheduler``, else the checkpoint's."""
    config = config or SD_DEFAULT
    if plan.scheduler is None:
        return dict(config)
    kind, settings = SCHEDULERS[plan.scheduler]
    return {**config, **settings, "_class_name": kind}


def _dump(config: Mapping[str, Any], path: Path) -> None:
    content = {key: value for key, value in config.items() if key != "_name_or_path"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
