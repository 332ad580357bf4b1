"""The columns of the MTU paper beside ours: FLOPs of one pass at 512 x 512, and parameters.

Chavhan et al., "Upcycling Text-to-Image Diffusion Models for Multi-Task Capabilities", ICML 2025
(arXiv 2503.11905). The paper does not say what it counts; convolutions and linear layers alone,
a multiply-add as two, meet its figures (``benchmarks/paper.py`` counts the published models).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mtu_export.bench.record import Kind, Work
from mtu_export.bench.report.groups import KINDS, Group
from mtu_export.bench.report.tables import Column, Table, Value

SIDE = 512
NEAR = 0.02
"""A model of ours is the paper's where its parameters are as near as this share."""
COUNTING = (
    "The paper's counting leaves attention's two products out: convolutions and linear layers "
    "alone, a multiply-add as two."
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of the paper; parameters as it rounds them."""

    model: str
    flops: float
    parameters: float
    kinds: tuple[Kind, ...]
    """Which of our measurements are this model."""


PUBLISHED = (
    Published(model="SD 1.5 single-task", flops=0.67e12, parameters=860e6, kinds=("dense",)),
    Published(
        model="MTU SD 1.5, N = 4", flops=0.68e12, parameters=869e6, kinds=("unfolded", "bundle")
    ),
    Published(model="SDXL single-task", flops=1.53e12, parameters=2.6e9, kinds=("dense",)),
    Published(
        model="MTU SDXL, N = 1", flops=1.54e12, parameters=2.6e9, kinds=("unfolded", "bundle")
    ),
)


def table(counted: Sequence[tuple[Kind, Work]]) -> Table:
    """The paper's rows, and below each what ``counted`` has of that model at 512 x 512."""
    rows: list[list[Value]] = []
    for published in PUBLISHED:
        rows.append([published.model, "paper", published.flops, None, published.parameters])
        same = list(_same(published, counted))
        if not same:
            rows.append([published.model, "ours: not measured", None, None, None])
        for kind, work in same:
            figures = (work.flops_conv_linear, work.flops_total, work.parameters)
            rows.append([published.model, f"ours, {KINDS[kind]}", *figures])
    columns = (
        Column("model"),
        Column("counted by"),
        Column("convolutions + linear", "flops"),
        Column("with attention", "flops"),
        Column("parameters", "count"),
    )
    return Table(title="The paper's columns", caption=COUNTING, columns=columns, rows=rows)


def _same(
    published: Published, counted: Sequence[tuple[Kind, Work]]
) -> Iterable[tuple[Kind, Work]]:
    for kind in published.kinds:
        for other, work in counted:
            if other == kind and abs(work.parameters / published.parameters - 1) <= NEAR:
                yield kind, work
                break


def counted(groups: Sequence[Group]) -> list[tuple[Kind, Work]]:
    """Work of every denoiser at 512 x 512; counts do not depend on the device."""
    parts = [m for group in groups for m in group.main_parts]
    return [
        (m.kind, m.work)
        for m in parts
        if m.work is not None and m.bundle.height == m.bundle.width == SIDE
    ]
