"""Compare arranged tensors with those of format 1: missing, unknown, or of a wrong shape.

Three mistakes have messages of their own: a router that is not two layers deep, norms per expert,
and a shared norm3 that contradicts the config. docs/adopt.md explains each message.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile

from mtu_export.checkpoint.maps.layout import Layout, Shape, TargetTensor, first_of, listed
from mtu_export.checkpoint.maps.mapping import Map

_ROUTER = ".ff.router."
_EXPERT = re.compile(r"(?P<path>.+)\.ff\.experts\.(?P<number>0|[1-9]\d{0,3})\.out\.weight")
_SHARED_NORM = re.compile(r".+\.norm3\.(?:weight|bias)")
_NORM = re.compile(r"(?:.*norm.*|ln_?\d*)", re.IGNORECASE)


def expert_widths(layout: Layout, experts: int) -> dict[str, dict[int, int]]:
    """Inner width hs by block and expert, from the shapes of those that are experts."""
    widths: dict[str, dict[int, int]] = {}
    for path, number, (proj, out) in _experts(layout):
        if number < experts and _belong(proj, out):
            widths.setdefault(path, {})[number] = out[1]
    return widths


def _experts(layout: Layout) -> Iterator[tuple[str, int, tuple[Shape, Shape]]]:
    """Block, number and the shapes of both matrices of every expert that has both."""
    for name, tensor in layout.tensors.items():
        match = _EXPERT.fullmatch(name)
        if not match or len(tensor.shape) != 2:
            continue
        proj = layout.tensors.get(name.removesuffix("out.weight") + "proj.weight")
        if proj is not None:
            yield match["path"], int(match["number"]), (proj.shape, tensor.shape)


def _belong(proj: Shape, out: Shape) -> bool:
    """Whether these are [2·hs, d] and [d, hs]."""
    return proj == (2 * out[1], out[0]) and out[1] > 0


def fit(tensor_map: Map, layout: Layout, expected: Mapping[str, Shape]) -> None:
    """Add the constants that the map fills, then every difference from ``expected``.

    ``expected`` are the shapes of format 1's tensors by name, for the config and experts' widths.
    """
    broken = set(expected) - set(layout.tensors) - set(layout.clashes)
    dtypes = [tensor.dtype for tensor in layout.tensors.values()]
    common = max(set(dtypes), key=dtypes.count) if dtypes else "F32"
    for number, fill in enumerate(tensor_map.fill):
        names = [
            name for name in expected if name in broken and fill.pattern.match(name) is not None
        ]
        if not names:
            layout.problems.append(f"fill[{number}] fills nothing: {fill.pattern.text!r}")
        for name in names:
            layout.tensors[name] = TargetTensor(
                name=name, shape=expected[name], dtype=common, constant=fill.value
            )
            broken.discard(name)
    unknown = [name for name in layout.tensors if name not in expected]
    missing = [name for name in expected if name in broken]
    first = _router_depth(layout, expected, unknown, missing) + _expert_norms(layout, unknown)
    first += _norm_placement(unknown, missing)
    wrong = _wrong(layout, expected)
    rest: list[str] = []
    if layout.leftover:
        rest.append(f"no rule takes {listed(layout.leftover)}")
    if unknown:
        rest.append(f"not in format 1: {listed(_with_source(layout, unknown))}")
    if missing:
        rest.append(f"nothing makes {listed(missing)}")
    layout.problems = [*first, *wrong, *layout.problems, *rest]


def _expert_of(name: str) -> str:
    """Path of the expert that a tensor belongs to; any other path where there is none."""
    return name.rsplit(".", 2)[0]


def _with_source(layout: Layout, names: Iterable[str]) -> list[str]:
    return [
        f"{name} (from {layout.tensors[name].pieces[0].source})"
        if layout.tensors[name].pieces and layout.tensors[name].pieces[0].source != name
        else name
        for name in names
    ]


def _wrong(layout: Layout, expected: Mapping[str, Shape]) -> list[str]:
    odd = {
        f"{path}.ff.experts.{number}": f"proj.weight {list(proj)}, out.weight {list(out)}"
        for path, number, (proj, out) in _experts(layout)
        if not _belong(proj, out)
    }
    rule = "are not an expert: format 1 has [2·hs, d] and [d, hs]"
    lines = first_of([f"{name!r}: {shapes} {rule}" for name, shapes in odd.items()])
    inputs: list[str] = []
    others: list[str] = []
    for name, shape in expected.items():
        tensor = layout.tensors.get(name)
        if tensor is None or tensor.shape == shape or _expert_of(name) in odd:
            continue
        line = f"{name!r} has shape {list(tensor.shape)}"
        if name.endswith(_ROUTER + "fc1.weight") and tensor.shape[1:] != shape[1:]:
            inputs.append(
                f"{line}: format 1's router looks at the task embedding alone, "
                f"task_embedding_dim {shape[1]}"
            )
            continue
        source = f" (from {tensor.pieces[0].source[:200]!r})" if tensor.pieces else ""
        others.append(f"{line}, needs {list(shape)}{source}")
    return [*first_of(inputs), *lines, *first_of(others)]


def _router_depth(
    layout: Layout, expected: Collection[str], unknown: Sequence[str], missing: Sequence[str]
) -> list[str]:
    """A problem for routers that are not exactly two layers deep."""
    rule = "format 1's router has exactly two layers, fc1 and fc2"
    blocks = {name.partition(_ROUTER)[0] for name in expected if _ROUTER in name}
    deeper = [n for n in unknown if _ROUTER in n and n.partition(_ROUTER)[0] in blocks]
    if deeper:
        return [f"router depth: {rule}; not {listed(_with_source(layout, deeper))}"]
    beside = _beside_routers(layout)
    if beside:
        return [f"router depth: {rule}; {listed(beside)} would be left out of one"]
    layers = {name.rpartition(".")[0] for name in layout.tensors if _ROUTER in name}
    for name in missing:
        path, router, layer = name.rpartition(".")[0].partition(_ROUTER)
        other = path + router + {"fc1": "fc2", "fc2": "fc1"}.get(layer, "")
        if router and path + router + layer not in layers and other in layers:
            return [f"router depth: {rule}; {path + router}{layer} is missing"]
    return []


def _beside_routers(layout: Layout) -> list[str]:
    """Sources without a target that lie in the module of a source's router."""
    alone = [*layout.leftover, *layout.misfit, *layout.dropped]
    routers: dict[str, set[str]] = {}
    others: set[str] = set()
    for name, tensor in layout.tensors.items():
        for source in (piece.source for piece in tensor.pieces):
            if _ROUTER in name:
                routers.setdefault(name.partition(_ROUTER)[0], set()).add(source)
            else:
                others.update(_above(source))
    modules = {_common(sources) for sources in routers.values()} - others - {""}
    return [name for name in alone if not modules.isdisjoint(_above(name))]


def _above(name: str) -> list[str]:
    """Every module that holds the tensor ``name``."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _common(names: Iterable[str]) -> str:
    """The innermost module that holds all tensors of ``names``."""
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return ".".join(column[0] for column in takewhile(lambda c: len(set(c)) == 1, columns))


def _expert_norms(layout: Layout, unknown: Sequence[str]) -> list[str]:
    """A problem for norms inside an expert, in the source or among the targets."""
    norms = [name for name in [*layout.leftover, *layout.misfit, *unknown] if _is_expert_norm(name)]
    if not norms:
        return []
    return [
        f"norms per expert do not exist in format 1 (one norm per block and task, before the "
        f"experts): {listed(norms)}"
    ]


def _norm_placement(unknown: Sequence[str], missing: Sequence[str]) -> list[str]:
    """A problem for a norm3 shared by all tasks where the config has none, or the reverse."""
    extra = [name for name in unknown if _SHARED_NORM.fullmatch(name)]
    lacking = [name for name in missing if _SHARED_NORM.fullmatch(name)]
    if extra:
        return [f"norm placement: only task_norm 'stacked' has a shared norm3, as {listed(extra)}"]
    if lacking:
        return [f"norm placement: task_norm 'stacked' needs the shared {listed(lacking)}"]
    return []


def _is_expert_norm(name: str) -> bool:
    parts = name.split(".")
    inside = [i for i, part in enumerate(parts) if "expert" in part.lower()]
    return bool(inside) and any(_NORM.fullmatch(part) for part in parts[inside[0] + 1 :])
