"""The MIL evaluator: runs a saved Core ML package where there is no Core ML.

:mod:`.program` reads the typed program and its weights, :mod:`.operators` is the table of operator
implementations, and :mod:`.evaluate` runs the program one operator at a time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mtu_export.spec import Arrays, Session, ToolchainMissing
from mtu_export.spec.extras import require
from mtu_export.targets.coreml import package

slow: str | None = (
    "no Core ML here: the MIL evaluator runs this bundle operator by operator on the CPU, "
    "many times slower than a phone"
)


def runner() -> tuple[str | None, str | None]:
    """``("mil-evaluator <version>", None)``, or None and the reason."""
    from mtu_export import __version__

    try:
        require("coremltools", "torch")
    except ToolchainMissing as missing:
        return None, str(missing)
    return f"mil-evaluator {__version__}", None


def open(path: Path, entry: str, accumulate: str = "float32", *, wide: bool = False) -> Session:
    """Load one function of a package from disk, ready to run.

    ``accumulate="float16"`` rounds partial sums as the narrowest hardware would; ``wide`` rounds
    nothing to float16. Raises ``BundleError`` for a malformed package and ``ToolchainError`` for
    an operator that is not implemented here.
    """
    require("coremltools", "torch")
    model = package.load(path)
    package.structure(path, entry, model)
    from mtu_export.targets.coreml.mil import evaluate, program

    return evaluate.Evaluator(program.read(path, entry, model), accumulate, wide=wide)


def witness(path: Path, entry: str, inputs: Arrays) -> tuple[float, ...]:
    """A fingerprint of a package's weights: 32 sums of its outputs with seeded random signs.

    Nothing is rounded to float16: other kernels agree to 1e-5, and a changed weight shows even
    where rounding to float16 would have hidden it.
    """
    outputs = open(path, entry, wide=True)(inputs)
    values = np.concatenate([value.ravel() for value in outputs.values()]).astype(np.float64)
    random = np.random.default_rng(0)
    return tuple(float(values @ (2.0 * random.integers(0, 2, values.size) - 1)) for _ in range(32))
