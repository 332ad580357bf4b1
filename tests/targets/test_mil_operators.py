"""Every operator against torch and against coremltools' own inference, from saved packages."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from .mil_cases import ALL, ELEMENTWISE, Case
from .mil_layers import INDEXING, NORMS, PRODUCTS
from .mil_shaping import SHAPING
from .mil_weights import WEIGHTS

pytestmark = pytest.mark.slow
CASES = [*ELEMENTWISE, *SHAPING, *INDEXING, *PRODUCTS, *NORMS, *WEIGHTS]
CASES_BY_OPSET = [(case, opset) for case in CASES for opset in case.opsets]
IDS = [f"{case.name}-iOS{opset + 10}" for case, opset in CASES_BY_OPSET]
Results = Callable[[Case, int, str], list[np.ndarray]]


def _typed(value: Any, dtype: str) -> Any:
    """Floating point arrays in another type; everything else as it is."""
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], np.ndarray):
        return [_typed(item, dtype) for item in value]
    if isinstance(value, (np.ndarray, np.floating)) and value.dtype.kind == "f":
        return value.astype(dtype)
    if isinstance(value, float):
        return np.float16(value) if dtype == "float16" else np.float32(value)
    return (
        np.array(value, bool if isinstance(value[0], bool) else np.int32)
        if isinstance(value, tuple)
        else value
    )


def _arguments(case: Case, dtype: str) -> tuple[dict[str, Any], dict[str, Any]]:
    data = {name: _typed(value, dtype) for name, value in case.data.items()}
    plain = {name: _typed(value, dtype) for name, value in case.plain.items()}
    if case.kind in ("upsample_nearest_neighbor", "constexpr_cast"):
        plain = dict(case.plain)
    return data, plain


def _variants(case: Case) -> list[str]:
    codes = case.kind.startswith("constexpr_") and case.kind != "constexpr_cast"
    half = case.half and (case.floats() or codes or case.kind == "dequantize")
    return ["float32", "float16"] if half else ["float32"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What the evaluator makes of every row: one saved package an operator set."""
    from mtu_export.targets.coreml import mil

    from .mil_packages import feeds, mb, save

    values: dict[tuple[str, int, str], list[np.ndarray]] = {}

    def run(opset: int) -> None:
        variants = [(c, t) for c in CASES if opset in c.opsets for t in _variants(c)]
        inputs: dict[str, np.ndarray] = {"unused": np.zeros(64, np.float32)}
        counts: list[int] = []
        for number, (case, dtype) in enumerate(variants):
            for name, value in _arguments(case, dtype)[0].items():
                many = value if isinstance(value, list) else [value]
                inputs |= {f"in_{number}_{name}_{i}": v for i, v in enumerate(many)}

        def build(unused: Any, *placeholders: Any) -> list[Any]:
            queue, outputs = list(placeholders), []
            for case, dtype in variants:
                data, plain = _arguments(case, dtype)
                for name, value in data.items():
                    if isinstance(value, list):
                        plain[name] = [queue.pop(0) for _ in value]
                    else:
                        plain[name] = queue.pop(0)
                result = getattr(mb, case.kind)(**plain)
                result = list(result) if isinstance(result, (list, tuple)) else [result]
                counts.append(len(result))
                outputs += result
            stored = mb.const(val=np.ones(64, np.float32))  # so that there is a weight file
            return [*outputs, mb.add(x=unused, y=stored)]

        path = save(tmp_path_factory.mktemp("mil") / "Ops.mlpackage", inputs, build, opset)
        outputs = list(mil.open(path, "main")(feeds(inputs)).values())
        for (case, dtype), count in zip(variants, counts, strict=True):
            values[case.name, opset, dtype] = [outputs.pop(0) for _ in range(count)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for opset in ALL:
            run(opset)
    return lambda case, opset, dtype: values[case.name, opset, dtype]


def _expected(case: Case, dtype: str) -> list[np.ndarray]:
    """What torch makes of the same values in float64."""
    data, plain = _arguments(case, dtype)

    def wide(value: Any) -> Any:
        if isinstance(value, list):
            return [wide(entry) for entry in value]
        if isinstance(value, np.ndarray):
            if value.dtype.kind == "f":
                return torch.from_numpy(value.astype(np.float64))
            return torch.from_numpy(value.astype(np.int32) if value.dtype == np.uint16 else value)
        return value

    constants = {
        name: torch.from_numpy(value.astype(np.float64))
        if isinstance(value, np.ndarray)
        and value.dtype.kind == "f"
        and not case.kind.startswith("constexpr_")
        else case.plain[name]
        if isinstance(case.plain[name], (tuple, bool, int, str))
        else value.item()
        if isinstance(value, np.floating)
        else value
        for name, value in plain.items()
    }
    actual = case.expected(**{name: wide(value) for name, value in data.items()}, **constants)
    entries = actual if isinstance(actual, (list, tuple)) else [actual]
    return [np.asarray(entry) for entry in entries]


@pytest.mark.parametrize(("case", "opset"), CASES_BY_OPSET, ids=IDS)
def test_an_operator_is_what_torch_says(case: Case, opset: int, results: Results) -> None:
    for dtype in _variants(case):
        actual, expected = results(case, opset, dtype), _expected(case, dtype)
        assert len(actual) == len(expected)
        for got, want in zip(actual, expected, strict=True):
            assert got.shape == want.shape
            if got.dtype == np.int32 or case.exact:
                assert np.array_equal(got, want)
                continue
            assert got.dtype == (np.float32 if case.kind == "constexpr_cast" else dtype)
            want = want.astype(np.float64)
            error = np.abs(got.astype(np.float64) - want)
            noise = 2e-6 * max(1.0, np.abs(want).max())
            if dtype == "float16":  # rounded once: no other float16 is nearer
                half = np.spacing(np.abs(want).astype(np.float16)).astype(np.float64) / 2
                assert (error <= 1.001 * half + noise).all(), error.max()
            else:
                assert (error <= noise).all(), error.max()


@pytest.mark.parametrize(("case", "opset"), CASES_BY_OPSET, ids=IDS)
def test_an_operator_is_what_coremltools_infers(case: Case, opset: int, results: Results) -> None:
    from .mil_packages import inferred

    data, plain = _arguments(case, "float32")
    opinion = inferred(case.kind, opset, {**plain, **data}) if case.opinion else None
    if opinion is None:
        pytest.skip("coremltools infers no value of it")
    for got, want in zip(results(case, opset, "float32"), opinion, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want.astype(got.dtype), rtol=1e-4, atol=1e-5)


def test_every_operator_of_the_table_has_a_row() -> None:
    from mtu_export.targets.coreml.mil import evaluate, operators

    assert evaluate
    assert set(operators.names()) == {case.kind for case in CASES}


def test_every_operator_says_what_it_means() -> None:
    from mtu_export.targets.coreml.mil import evaluate, operators

    assert evaluate
    for name in operators.names():
        for opset in ALL:
            operator = operators.find(name, opset)
            assert operator is None or operator.function.__doc__
