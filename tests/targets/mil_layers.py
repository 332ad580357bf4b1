"""Rows of the operator table for layers: look-ups, products, norms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .mil_cases import ALL, Case, flags, normal, whole


def _index(name: str, kind: str, opsets: tuple[int, ...], expected: Any, **options: Any) -> Case:
    plain, opinion = options.pop("plain", {}), options.pop("opinion", True)
    fields = {"name": name, "kind": kind, "opsets": opsets, "opinion": opinion}
    return Case(**fields, data=options, plain=plain, expected=expected)


TABLE = normal(5, 4, 3)
INDEXING = [
    *[
        _index(
            f"gather-{axis}-{indices.dtype}-{indices.ndim}",
            "gather",
            opsets,
            lambda x, indices, axis: torch.from_numpy(
                np.take(x.numpy(), indices.numpy().astype(np.int64), axis)
            ),
            x=TABLE,
            indices=indices,
            plain={"axis": axis},
        )
        for axis, indices, opsets in (
            (0, whole(0, 5, 2, 6), ALL),
            (1, whole(0, 4, 3), ALL),
            (-1, whole(0, 3, 2, 2), ALL),
            (0, np.array([-1, 4, -5, 0], np.int32), (6,)),
            (0, whole(0, 5, 1, 7, dtype="int16"), (7, 8)),
            (0, whole(0, 5, 3, dtype="uint16"), (7, 8)),
        )
    ],
    _index(
        "gather-batch",
        "gather",
        ALL,
        lambda x, indices, **_: torch.stack([x[i, :, indices[i].long()] for i in range(5)]),
        x=TABLE,
        indices=whole(0, 3, 5, 2),
        plain={"axis": 2, "batch_dims": 1},
    ),
    _index(
        "gather_along_axis",
        "gather_along_axis",
        ALL,
        lambda x, indices, axis: torch.from_numpy(
            np.take_along_axis(x.numpy(), indices.numpy().astype(np.int64), axis)
        ),
        x=TABLE,
        indices=whole(0, 4, 5, 2, 3),
        plain={"axis": 1},
    ),
    _index(
        "gather_nd",
        "gather_nd",
        ALL,
        lambda x, indices: x[indices[:, 0].long(), indices[:, 1].long()],
        x=TABLE,
        indices=whole(0, 4, 6, 2),
    ),
    *[
        _index(
            f"cumsum-{exclusive}-{reverse}",
            "cumsum",
            ALL,
            f,
            x=normal(3, 4),
            plain={"axis": 1, "exclusive": exclusive, "reverse": reverse},
            opinion=not exclusive,  # coremltools 9 raises
        )
        for exclusive, reverse, f in (
            (False, False, lambda x, **_: x @ torch.ones(4, 4).double().triu()),
            (True, False, lambda x, **_: x @ torch.ones(4, 4).double().triu(1)),
            (False, True, lambda x, **_: x @ torch.ones(4, 4).double().tril()),
        )
    ],
    *[
        _index(
            f"upsample_nearest_neighbor-{height}-{width}",
            "upsample_nearest_neighbor",
            ALL,
            lambda x, scale_factor_height, scale_factor_width: torch.from_numpy(
                np.kron(
                    x.numpy(), np.ones((1, 1, int(scale_factor_height), int(scale_factor_width)))
                )
            ),
            x=normal(1, 2, 3, 4),
            plain={"scale_factor_height": height, "scale_factor_width": width},
        )
        for height, width in ((2, 2), (np.float32(3), np.float32(1)), (1, 2))
    ],
    *[
        _index(
            f"upsample_bilinear-{corners}",
            "upsample_bilinear",
            ALL,
            lambda x, scale_factor_height, scale_factor_width, align_corners: F.interpolate(
                x, scale_factor=(2, 3), mode="bilinear", align_corners=align_corners
            ),
            x=normal(1, 2, 3, 4),
            plain={"scale_factor_height": 2, "scale_factor_width": 3, "align_corners": corners},
        )
        for corners in (True, False)
    ],
]


def _conv(x: torch.Tensor, weight: torch.Tensor, bias: Any = None, **options: Any) -> torch.Tensor:
    """Convolution by unfolding: no convolution of torch's."""
    step, apart = options.get("strides", (1, 1)), options.get("dilations", (1, 1))
    top, bottom, left, right = options.get("pad", (0, 0, 0, 0))
    if options.get("pad_type") == "same":
        top = bottom = left = right = weight.shape[-1] // 2
    groups, x = options.get("groups", 1), F.pad(x, (left, right, top, bottom))
    size = [
        (x.shape[2 + i] - (weight.shape[2 + i] - 1) * apart[i] - 1) // step[i] + 1 for i in (0, 1)
    ]
    out = []
    for part, kernel in zip(x.chunk(groups, 1), weight.chunk(groups, 0), strict=True):
        columns = F.unfold(part, weight.shape[2:], dilation=apart, stride=step)
        out.append((kernel.flatten(1) @ columns).reshape(x.shape[0], -1, *size))
    result = torch.cat(out, 1)
    return result if bias is None else result + bias[:, None, None]


W = normal(6, 4, 3, 3)
PRODUCTS = [
    Case(
        name="linear",
        kind="linear",
        data={"x": normal(2, 5, 8)},
        plain={"weight": normal(6, 8), "bias": normal(6)},
        expected=lambda x, weight, bias: torch.einsum("abi,oi->abo", x, weight) + bias,
    ),
    Case(
        name="linear-no-bias",
        kind="linear",
        data={"x": normal(3, 40)},
        plain={"weight": normal(6, 40)},
        expected=lambda x, weight: torch.einsum("bi,oi->bo", x, weight),
    ),
    *[
        Case(
            name=f"matmul-{tx}-{ty}-{len(x.shape)}",
            kind="matmul",
            data={"x": x, "y": y},
            plain={"transpose_x": tx, "transpose_y": ty},
            expected=lambda x, y, transpose_x, transpose_y: torch.einsum(
                f"...{'ka' if transpose_x else 'ak'},...{'bk' if transpose_y else 'kb'}->...ab",
                x,
                y,
            ),
        )
        for tx, ty, x, y in (
            (False, False, normal(3, 4), normal(4, 5)),
            (True, False, normal(4, 3), normal(4, 5)),
            (False, True, normal(2, 3, 4), normal(2, 5, 4)),
            (True, True, normal(2, 1, 4, 3), normal(3, 5, 4)),
        )
    ],
    *[
        Case(
            name=f"conv-{i}",
            kind="conv",
            data={"x": normal(2, 4, 7, 6)},
            plain={"weight": weight, **plain},
            expected=_conv,
        )
        for i, (weight, plain) in enumerate(
            (
                (W, {"pad_type": "valid"}),
                (W, {"pad_type": "valid", "pad": (1, 1, 1, 1), "bias": normal(6)}),
                (W, {"pad_type": "custom", "pad": (1, 1, 1, 1), "bias": normal(6)}),
                (W, {"pad_type": "custom", "pad": (0, 2, 1, 0), "strides": (2, 1)}),
                (W, {"pad_type": "custom", "pad": (2, 2, 2, 2), "dilations": (2, 1)}),
                (W, {"pad_type": "same", "bias": normal(6)}),
                (normal(6, 2, 3, 1), {"pad_type": "valid", "groups": 2, "bias": normal(6)}),
                (normal(4, 4, 1, 1), {"pad_type": "valid"}),
            )
        )
        if not (plain["pad_type"] == "valid" and "pad" in plain)
    ],
    *[
        Case(
            name=f"scaled_dot_product_attention-{i}",
            kind="scaled_dot_product_attention",
            data={
                "query": normal(2, 3, 5, 8),
                "key": normal(2, 3, 7, 8),
                "value": normal(2, 3, 7, 4),
                **mask,
            },
            expected=lambda query, key, value, attn_mask=None: _attention(
                query, key, value, attn_mask
            ),
            opsets=(8,),
        )
        for i, mask in enumerate(
            (
                {},
                {"attn_mask": normal(5, 7)},
                {"attn_mask": flags(1, 1, 5, 7) | np.eye(5, 7, dtype=bool)},
            )
        )
    ],
]


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    scores = torch.einsum("bhle,bhse->bhls", query, key) / query.shape[-1] ** 0.5
    if mask is not None:
        bools = mask.dtype is torch.bool
        scores = torch.where(mask, scores, -torch.inf) if bools else scores + mask
    return torch.einsum("bhls,bhsv->bhlv", torch.softmax(scores, -1), value)


X = normal(2, 3, 4, 5) + 1
NORMS = [
    *[
        Case(name=f"{kind}-{axes}-{keep}", kind=kind, data={"x": X}, plain=plain, expected=f)
        for kind, f in (
            ("reduce_mean", lambda x, axes, keep_dims: torch.mean(x, axes, keep_dims)),
            ("reduce_sum", lambda x, axes, keep_dims: torch.sum(x, axes, keep_dims)),
            ("reduce_max", lambda x, axes, keep_dims: torch.amax(x, axes, keep_dims)),
            ("reduce_min", lambda x, axes, keep_dims: torch.amin(x, axes, keep_dims)),
            (
                "reduce_sum_square",
                lambda x, axes, keep_dims: torch.sum(x**2, axes, keep_dims),
            ),
            (
                "reduce_l2_norm",
                lambda x, axes, keep_dims: torch.linalg.vector_norm(x, 2, axes, keep_dims),
            ),
        )
        for axes, keep in (((2, 3), True), ((-1,), False), ((1, -2), True))
        for plain in ({"axes": axes, "keep_dims": keep},)
    ],
    Case(
        name="reduce_mean-default",
        kind="reduce_mean",
        data={"x": X},
        plain={"axes": (0, 1, 2, 3)},
        expected=lambda x, axes: torch.mean(x),
    ),
    *[
        Case(
            name=f"softmax-{axis}",
            kind="softmax",
            data={"x": 4 * normal(2, 3, 5)},
            plain={"axis": axis},
            expected=lambda x, axis: torch.exp(x) / torch.exp(x).sum(axis, keepdim=True),
        )
        for axis in (-1, 1, 0)
    ],
    *[
        Case(
            name=f"layer_norm-{axes}-{epsilon}",
            kind="layer_norm",
            data={"x": X},
            plain={
                "axes": axes,
                "gamma": normal(*shape),
                "beta": normal(*shape),
                "epsilon": epsilon,
            },
            expected=lambda x, axes, gamma, beta, epsilon: _norm(x, axes, gamma, beta, epsilon),
        )
        for axes, shape in (((-1,), (5,)), ((2, 3), (4, 5)), ((1,), (3,)), ((1, 3), (3, 5)))
        for epsilon in (np.float32(2**-10), np.float32(0.5))
    ],
    *[
        Case(
            name=f"batch_norm-{epsilon}",
            kind="batch_norm",
            data={"x": X},
            plain={
                "mean": normal(3),
                "variance": np.abs(normal(3)) + 1,
                "gamma": normal(3),
                "beta": normal(3),
                "epsilon": epsilon,
            },
            expected=lambda x, mean, variance, gamma, beta, epsilon: F.batch_norm(
                x, mean, variance, gamma, beta, eps=epsilon
            ),
        )
        for epsilon in (np.float32(2**-10), np.float32(0.5))
    ],
    *[
        Case(
            name=f"reduce_argmax-{axis}",
            kind="reduce_argmax",
            data={"x": X},
            plain={"axis": axis, "keep_dims": keep},
            expected=lambda x, axis, keep_dims: (
                torch.sort(x, axis, descending=True)[1].narrow(axis, 0, 1)
                if keep_dims
                else torch.sort(x, axis, descending=True)[1].select(axis, 0)
            ),
            half=False,
        )
        for axis, keep in ((-1, True), (1, False))
    ],
    Case(
        name="instance_norm",
        kind="instance_norm",
        data={"x": X},
        plain={"gamma": normal(3), "beta": normal(3), "epsilon": np.float32(0.25)},
        expected=lambda x, gamma, beta, epsilon: F.instance_norm(
            x, weight=gamma, bias=beta, eps=epsilon
        ),
    ),
    Case(
        name="l2_norm",
        kind="l2_norm",
        data={"x": X},
        plain={"epsilon": np.float32(0.25)},
        expected=lambda x, epsilon: torch.stack([r / (r.norm() ** 2 + epsilon) ** 0.5 for r in x]),
    ),
]


def _norm(
    x: torch.Tensor, axes: Any, gamma: torch.Tensor, beta: torch.Tensor, epsilon: float
) -> torch.Tensor:
    kept = [x.shape[i] if i in [a % x.ndim for a in axes] else 1 for i in range(x.ndim)]
    middle = x - x.mean(axes, keepdim=True)
    scaled = middle / torch.sqrt((middle**2).mean(axes, keepdim=True) + epsilon)
    return scaled * gamma.reshape(kept) + beta.reshape(kept)
