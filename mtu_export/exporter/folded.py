"""One task folded, as a stock diffusers UNet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mtu_export import checkpoint
from mtu_export.exporter.assembly import Watch, unwatched
from mtu_export.spec import Plan, Unsupported
from mtu_export.storage.draft import FOLDED, draft


def save_folded(plan: Plan, watch: Watch = unwatched) -> Path:
    """Fold one task and save it as a stock ``UNet2DConditionModel`` folder; returns its path.

    Raises ``Unsupported`` where the folded task does not fit a stock UNet.
    """
    (part,) = (spec for spec in plan.model.parts if spec.kind == "denoiser")
    with draft(
        plan.out, force=plan.force, marker=FOLDED, sources=[*checkpoint.sources(plan.checkpoint)]
    ) as folder:
        with watch("import PyTorch"):
            from mtu_export.graph import quantize
        with watch("load checkpoint"):
            live = plan.model.load(part.name)
        with watch("fold"):
            specialised = live.specialise(plan.tasks)
        if specialised is None:
            raise Unsupported(f"{plan.checkpoint} has nothing to fold: its UNet is a stock one")
        (folded,) = specialised.values()
        if folded.deviations:
            raise Unsupported(f"no stock UNet2DConditionModel fits: {folded.deviations[0]}")
        with watch("save"):
            module: Any = folded.module  # a diffusers model, as nothing deviates
            quantize.quantize([module], plan.scheme)
            module.save_pretrained(folder)
            config = checkpoint.read_json(folder / FOLDED.file)
            config |= {FOLDED.key: FOLDED.value, "_task": plan.tasks[0].name}
            (folder / FOLDED.file).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    return plan.out
