"""The forms in which a file holds Δ for one layer: each knows its shape, its rank and its values.

- LoRA: Δ = up · (mid) · down, matrices or convolutions (Hu et al. 2021; with ``mid`` a Tucker
  decomposition, LyCORIS' LoCon).
- LoHa: Δ = (w1_a · w1_b) ∘ (w2_a · w2_b) (Hyeon-Woo et al., "FedPara", 2022, Prop. 1 and 3).
- LoKr: Δ = w1 ⊗ w2, where either may be a product of two (Yeh et al., "LyCORIS", 2024).
- full: Δ itself.

A shape is computed from those of the stored tensors, before anything is multiplied: what does not
fit a layer is never allocated. LoHa and LoKr of a convolution may have its kernel flattened into
the second axis: such a Δ has two axes, and a layer's ``Target`` unfolds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


class Delta(Protocol):
    """Δ of one weight, without alpha/rank."""

    method: ClassVar[str]
    roles: ClassVar[tuple[str, ...]]
    """Names of the tensors that it may hold; the constructor's arguments."""

    def check(self) -> None:
        """Raise ``ValueError`` where the tensors' shapes do not belong together."""
        ...

    @property
    def rank(self) -> int | None:
        """What alpha is divided by; None where alpha has no meaning."""
        ...

    @property
    def shape(self) -> Shape:
        """Shape of Δ."""
        ...

    @property
    def bound(self) -> float:
        """A number that no value of Δ exceeds in magnitude."""
        ...

    def values(self) -> Tensor:
        """Δ in float32, of :attr:`shape`."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRank:
    """Δ = up · (mid) · down.

    ``down`` [r, in] or [r, in, k, k]; ``up`` [out, r] or [out, r, 1, 1]; ``mid`` [r, r, k, k], in
    which case ``down`` is 1 x 1.
    """

    method: ClassVar[str] = "LoRA"
    roles: ClassVar[tuple[str, ...]] = ("down", "up", "mid")
    down: Tensor
    up: Tensor
    mid: Tensor | None = None

    def check(self) -> None:
        """Ranks agree, and ``up`` is 1 x 1."""
        down, up, mid = self.down, self.up, self.mid
        valid = down.ndim in (2, 4) and up.ndim in (2, 4) and set(up.shape[2:]) <= {1}
        if mid is not None:
            valid = valid and mid.ndim == 4 and set(down.shape[2:]) <= {1}
        _require(valid, "is not a product of matrices or convolutions", self)
        rank = self.rank
        same = up.shape[1] == rank and (mid is None or mid.shape[:2] == (rank, rank))
        _require(same, "ranks differ", self)

    @property
    def rank(self) -> int:
        """The number of rows of ``down``."""
        return self.down.shape[0]

    @property
    def shape(self) -> Shape:
        """[out, in] or [out, in, k, k]."""
        inner = self.down if self.mid is None else self.mid
        return (self.up.shape[0], self.down.shape[1], *inner.shape[2:])

    @property
    def bound(self) -> float:
        """Every value is a sum of r products, or of r² with ``mid``."""
        outer = self.rank * _largest(self.up) * _largest(self.down)
        return outer if self.mid is None else outer * self.rank * _largest(self.mid)

    def values(self) -> Tensor:
        """Δ in float32."""
        up, down = self.up.float().flatten(1), self.down.float().flatten(1)
        if self.mid is not None:
            spread = self.mid.float().permute(0, 2, 3, 1) @ down  # [r, k, k, in]
            down = spread.permute(0, 3, 1, 2).flatten(1)
        return (up @ down).reshape(self.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Hadamard:
    """Δ = (w1_a · w1_b) ∘ (w2_a · w2_b).

    ``w_a`` [out, r], ``w_b`` [r, in], or [r, in · k · k] of a convolution. With the cores ``t``
    [r, r, k, k] each factor is Σ_ij t[i, j] w_a[i, out] w_b[j, in], and ``w_a`` is [r, out].
    """

    method: ClassVar[str] = "LoHa"
    roles: ClassVar[tuple[str, ...]] = (
        "hada_w1_a",
        "hada_w1_b",
        "hada_w2_a",
        "hada_w2_b",
        "hada_t1",
        "hada_t2",
    )
    hada_w1_a: Tensor
    hada_w1_b: Tensor
    hada_w2_a: Tensor
    hada_w2_b: Tensor
    hada_t1: Tensor | None = None
    hada_t2: Tensor | None = None

    @property
    def _factors(self) -> tuple[_Factor, _Factor]:
        return (
            _Factor(self.hada_w1_a, self.hada_w1_b, self.hada_t1),
            _Factor(self.hada_w2_a, self.hada_w2_b, self.hada_t2),
        )

    def check(self) -> None:
        """Both factors are products of one rank and one shape."""
        one, two = self._factors
        _require((one.core is None) == (two.core is None), "has one core of two", self)
        _require(one.valid and two.valid, "is not two products of matrices", self)
        _require(one.rank == two.rank and one.consistent and two.consistent, "ranks differ", self)
        _require(one.shape == two.shape, "is not two products of one shape", self)

    @property
    def rank(self) -> int:
        """That of each factor."""
        return self._factors[0].rank

    @property
    def shape(self) -> Shape:
        """[out, in], [out, in · k · k], or [out, in, k, k] with cores."""
        return self._factors[0].shape

    @property
    def bound(self) -> float:
        """The product of the factors' bounds."""
        one, two = self._factors
        return one.bound * two.bound

    def values(self) -> Tensor:
        """Δ in float32."""
        one, two = self._factors
        return one.product() * two.product()


@dataclass(frozen=True, kw_only=True, eq=False)
class Kronecker:
    """Δ = w1 ⊗ w2, on the first two axes where ``w2`` has a kernel.

    ``w1`` [a, c] or w1_a [a, r] · w1_b [r, c]; ``w2`` [b, d] or [b, d, k, k], w2_a [b, r] · w2_b
    [r, d] or [r, d · k · k], or with a core ``t2`` [r, r, k, k], w2_a [r, b] and w2_b [r, d].
    """

    method: ClassVar[str] = "LoKr"
    roles: ClassVar[tuple[str, ...]] = (
        "lokr_w1",
        "lokr_w1_a",
        "lokr_w1_b",
        "lokr_w2",
        "lokr_w2_a",
        "lokr_w2_b",
        "lokr_t2",
    )
    lokr_w1: Tensor | None = None
    lokr_w1_a: Tensor | None = None
    lokr_w1_b: Tensor | None = None
    lokr_w2: Tensor | None = None
    lokr_w2_a: Tensor | None = None
    lokr_w2_b: Tensor | None = None
    lokr_t2: Tensor | None = None

    @property
    def _factors(self) -> tuple[Tensor | _Factor, Tensor | _Factor]:
        one, two = self.lokr_w1, self.lokr_w2
        if one is None:
            assert self.lokr_w1_a is not None
            assert self.lokr_w1_b is not None
            one = _Factor(self.lokr_w1_a, self.lokr_w1_b)
        if two is None:
            assert self.lokr_w2_a is not None
            assert self.lokr_w2_b is not None
            two = _Factor(self.lokr_w2_a, self.lokr_w2_b, self.lokr_t2)
        return one, two

    def check(self) -> None:
        """Each factor is there once, whole or as a product, and ranks agree."""
        for n in (1, 2):
            whole, *halves = (getattr(self, f"lokr_w{n}{end}") for end in ("", "_a", "_b"))
            core = self.lokr_t2 if n == 2 else None
            parts = [half for half in (*halves, core) if half is not None]
            once = not parts if whole is not None else None not in halves
            _require(once, f"needs lokr_w{n}, or lokr_w{n}_a and lokr_w{n}_b", self)
        one, two = self._factors
        valid = one.valid if isinstance(one, _Factor) else one.ndim == 2
        valid &= two.valid if isinstance(two, _Factor) else two.ndim in (2, 4)
        _require(valid, "is not a Kronecker product of matrices", self)
        products = [factor for factor in (one, two) if isinstance(factor, _Factor)]
        same = len({factor.rank for factor in products}) < 2
        _require(same and all(f.consistent for f in products), "ranks differ", self)

    @property
    def rank(self) -> int | None:
        """That of a factor which is a product; two whole factors have none."""
        ranks = [factor.rank for factor in self._factors if isinstance(factor, _Factor)]
        return ranks[0] if ranks else None

    @property
    def shape(self) -> Shape:
        """[a · b, c · d], with the axes of a kernel after them."""
        one, two = (tuple(factor.shape) for factor in self._factors)
        return (one[0] * two[0], one[1] * two[1], *two[2:])

    @property
    def bound(self) -> float:
        """The product of the factors' bounds."""
        return math.prod(
            factor.bound if isinstance(factor, _Factor) else _largest(factor)
            for factor in self._factors
        )

    def values(self) -> Tensor:
        """Δ in float32."""
        import torch

        one, two = (
            factor.product() if isinstance(factor, _Factor) else factor.float()
            for factor in self._factors
        )
        return torch.kron(one.reshape(*one.shape, *[1] * (two.ndim - 2)), two.contiguous())


@dataclass(frozen=True, kw_only=True, eq=False)
class Full:
    """Δ as it is stored: of a weight, or of a norm's."""

    method: ClassVar[str] = "full"
    roles: ClassVar[tuple[str, ...]] = ("diff",)
    diff: Tensor

    def check(self) -> None:
        """A weight has one to four axes."""
        _require(1 <= self.diff.ndim <= 4, "is not the difference of a weight", self)

    @property
    def rank(self) -> None:
        """None: alpha has no meaning."""

    @property
    def shape(self) -> Shape:
        """That of the weight."""
        return tuple(self.diff.shape)

    @property
    def bound(self) -> float:
        """The largest value."""
        return _largest(self.diff)

    def values(self) -> Tensor:
        """Δ in float32."""
        return self.diff.float()


FORMS: tuple[type[Delta], ...] = (LowRank, Hadamard, Kronecker, Full)


def build(tensors: Mapping[str, Tensor]) -> Delta | None:
    """The form of which these are the tensors, by role; None if none is there.

    Raises ``ValueError`` with what is wrong: tensors of two forms, a missing one, shapes that do
    not belong together.
    """
    kinds = [form for form in FORMS if any(role in tensors for role in form.roles)]
    if not kinds:
        return None
    if len(kinds) > 1:
        methods = " and ".join(form.method for form in kinds)
        raise ValueError(f"has tensors of {methods}: which one is meant is unknown")
    form = kinds[0]
    stored = {role: tensors[role] for role in form.roles if role in tensors}
    for role in form.roles:
        needed = not hasattr(form, role)  # a field without a default
        if needed and role not in stored:
            name = role if "_" in role else f"{role} matrix"
            raise ValueError(f"has no {name}: its pair is missing")
    delta = form(**stored)
    delta.check()
    return delta


@dataclass(frozen=True)
class _Factor:
    """a [n, r] · b [r, m], or with a core [r, r, k, k] Σ_ij core[i, j] a[i, n] b[j, m]."""

    a: Tensor
    b: Tensor
    core: Tensor | None = None

    @property
    def valid(self) -> bool:
        """Whether these are matrices, and the core a convolution."""
        return self.a.ndim == self.b.ndim == 2 and (self.core is None or self.core.ndim == 4)

    @property
    def rank(self) -> int:
        return self.b.shape[0]

    @property
    def consistent(self) -> bool:
        """Whether the rank is the same everywhere."""
        rank = self.rank
        if self.core is None:
            return self.a.shape[1] == rank
        return self.a.shape[0] == rank and tuple(self.core.shape[:2]) == (rank, rank)

    @property
    def shape(self) -> Shape:
        if self.core is None:
            return (self.a.shape[0], self.b.shape[1])
        return (self.a.shape[1], self.b.shape[1], *self.core.shape[2:])

    @property
    def bound(self) -> float:
        outer = self.rank * _largest(self.a) * _largest(self.b)
        return outer if self.core is None else outer * self.rank * _largest(self.core)

    def product(self) -> Tensor:
        """The product in float32."""
        import torch

        a, b = self.a.float(), self.b.float()
        if self.core is None:
            return a @ b
        inner = torch.einsum("ijkl,jm->imkl", self.core.float(), b)
        return torch.einsum("imkl,in->nmkl", inner, a)


def _largest(tensor: Tensor) -> float:
    """The largest magnitude."""
    low, high = (float(bound) for bound in tensor.aminmax())
    return max(-low, high)


def _require(holds: bool, problem: str, form: Delta) -> None:
    if not holds:
        stored = {role: getattr(form, role) for role in form.roles}
        shapes = (f"{role} {list(t.shape)}" for role, t in stored.items() if t is not None)
        raise ValueError(f"{problem}: {', '.join(shapes)}")
