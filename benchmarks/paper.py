"""FLOPs and parameters of the published models in both countings, beside the paper's.

    python benchmarks/paper.py [--out benchmarks/results]

Nothing has weights: modules are made on PyTorch's meta device, at 512 x 512 and batch 1. The task
is `edit`. MTU counts with all of its experts, routers and tasks; folded, it is a stock UNet.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mtu_export.bench.record import Kind, Work
from mtu_export.bench.report import paper, text

TASKS = ("t2i", "edit", "sr", "inpaint")
EXPERTS = {"sd15": 4, "sdxl": 1}


def counted(unet: Any, channels: int, **task: str) -> Work:
    """Of one pass at 512 x 512; no file, so no bytes."""
    import torch

    from mtu_export.graph import capture
    from mtu_export.models.pipeline.unet import unet_graph

    side = paper.SIDE // 8
    unet.eval().requires_grad_(False)
    graph = unet_graph(unet, unet.config, channels=channels, batch=1, latent=(side, side), **task)
    with torch.device("meta"):
        cost = capture.cost(graph)
    return Work(
        bytes=0,
        parameters=cost.parameters,
        flops_conv_linear=cost.flops_conv_linear,
        flops_total=cost.flops_total,
    )


def models(architecture: str) -> list[tuple[Kind, Work]]:
    """The single-task model (4 channels), MTU, and MTU folded (8 channels)."""
    import torch
    from diffusers import UNet2DConditionModel

    from mtu_export.authoring import upcycle
    from mtu_export.models.mtu.network import MTUUNet2DConditionModel
    from mtu_export.models.mtu.presets import resolve_tasks
    from mtu_export.testing.architectures import ARCHITECTURES

    stock = dict(ARCHITECTURES[architecture])
    config = upcycle.mtu_config(
        stock, resolve_tasks(TASKS, stock), EXPERTS[architecture], (768, 768), "replace"
    )
    with torch.device("meta"):
        dense = UNet2DConditionModel(**stock)
        folded = UNet2DConditionModel(**{**stock, "in_channels": 8})
        live = MTUUNet2DConditionModel.from_config(config)
    return [
        ("dense", counted(dense, 4)),
        ("unfolded", counted(live, 8, task="edit")),
        ("bundle", counted(folded, 8)),
    ]


def page(document: list[dict[str, Any]]) -> str:
    """The rows of paper.json as a table in Markdown."""
    rows = [{key: row[key] for key in row if key not in ("model", "kind")} for row in document]
    works = [Work.model_validate(row) for row in rows]
    table = paper.table([(row["kind"], work) for row, work in zip(document, works, strict=True)])
    return "\n".join(
        [
            "# The paper's columns",
            "",
            "Made by `make paper`: one pass at 512 x 512 and batch 1 (MTU: the task `edit`), "
            f"counted on modules without weights. {table.caption} `unfolded` has all experts, "
            "routers and tasks, as the paper counts MTU; `bundle` is what is exported of one task: "
            "a stock UNet.",
            "",
            *text.grid(table),
            "",
        ]
    )


def main() -> None:
    """Count, write paper.json and paper.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    folder = parser.parse_args().out
    document = [
        {"model": name, "kind": kind, **work.to_json()}
        for name in EXPERTS
        for kind, work in models(name)
    ]
    (folder / "paper.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    (folder / "paper.md").write_text(page(document), "utf-8")


if __name__ == "__main__":
    main()
