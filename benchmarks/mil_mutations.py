"""Mutants of the MIL evaluator: semantics changed one at a time, each to be caught by its tests.

    python benchmarks/mil_mutations.py [--only WORD ...]

Each mutant is a copy of the tree with one text replaced, tested in a process of its own (a fork of
one that has the libraries loaded but none of ours). A mutant whose tests all pass has survived.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).parent.parent
MIL = Path("mtu_export/targets/coreml/mil")
TESTS = ("test_mil_operators.py", "test_mil_program.py", "test_mil_graphs.py")
# what is changed: file, text, its replacement
MUTANTS: dict[str, tuple[str, str, str]] = {
    "operands of sub exchanged": ("elementwise", "return x - y", "return y - x"),
    "floor_div towards zero": ("elementwise", 'rounding_mode="floor"', 'rounding_mode="trunc"'),
    "mod with the sign of x": ("elementwise", "torch.remainder(x, y)", "torch.fmod(x, y)"),
    "round halves away from zero": (
        "elementwise",
        "return x.round()",
        "return x.sign() * (x.abs() + 0.5).floor()",
    ),
    "cast to the nearest integer": (
        "elementwise",
        "    return x.to(kind)",
        "    whole = x.is_floating_point() and not kind.is_floating_point and kind != torch.bool\n"
        "    return x.round().to(kind) if whole else x.to(kind)",
    ),
    "operands of select exchanged": (
        "elementwise",
        "torch.where(cond, a, b)",
        "torch.where(cond, b, a)",
    ),
    "exact gelu by tanh": (
        "elementwise",
        "return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))",
        'return F.gelu(x, approximate="tanh")',
    ),
    "rsqrt without epsilon": ("elementwise", "return (x + epsilon).rsqrt()", "return x.rsqrt()"),
    "softmax along the last axis": ("norms", "x.softmax(axis)", "x.softmax(-1)"),
    "layer_norm with the default epsilon": ("norms", "gamma, beta, epsilon)", "gamma, beta, 1e-5)"),
    "batch_norm: epsilon outside the root": (
        "norms",
        "(variance + epsilon).sqrt(), x)",
        "variance.sqrt() + epsilon, x)",
    ),
    "variance of a sample": ("norms", "correction=0", "correction=1"),
    "reduce_mean keeps no dimensions": (
        "norms",
        "x.mean(_axes(x, axes), keep_dims)",
        "x.mean(_axes(x, axes))",
    ),
    "concat interleaved the other way": (
        "shaping",
        "torch.stack(values, axis + 1)",
        "torch.stack(values, axis)",
    ),
    "pad from the first dimension": ("shaping", "in reversed(pairs)", "in pairs"),
    "reflect with the edge": ("shaping", "range(-before, 0)]", "range(1 - before, 1)]"),
    "end_mask ignored": ("shaping", "None if open_end[axis] else end[axis]", "end[axis]"),
    "reshape: 0 from the left on iOS17": (
        "shaping",
        "1 if i < missing else x.shape[i - missing]",
        "x.shape[i] if i < x.ndim else 1",
    ),
    "transpose by the inverse order": (
        "shaping",
        "x.permute(perm)",
        "x.permute([[p % x.ndim for p in perm].index(i) for i in range(x.ndim)])",
    ),
    "expand_dims: negative axes of x": (
        "shaping",
        "{axis + rank if axis < 0",
        "{axis + x.ndim if axis < 0",
    ),
    "gather along the first axis": (
        "indexing",
        "x.index_select(axis, ind",
        "x.index_select(0, ind",
    ),
    "negative indices clipped on iOS16": (
        "indexing",
        "torch.where(indices < 0, indices + size, indices)",
        "indices.clamp_min(0)",
    ),
    "upsampling repeats the whole": (
        "indexing",
        "x = x.repeat_interleave(int(factor), axis)",
        "x = torch.cat([x] * int(factor), axis)",
    ),
    "bilinear: corners always aligned": (
        "indexing",
        "align_corners=align_corners)",
        "align_corners=True)",
    ),
    "transpose_y ignored": ("products", "if transpose_y and y.ndim > 1", "if False"),
    "linear without bias": (
        "products",
        "return F.linear(x, weight, bias)",
        "return F.linear(x, weight)",
    ),
    "padding after before padding before": (
        "products",
        "sides[2 * i : 2 * i + 2]]",
        "sides[2 * i : 2 * i + 2][::-1]]",
    ),
    "strides and dilations exchanged": (
        "products",
        "convolve(x, weight, bias, steps, 0, apart, groups)",
        "convolve(x, weight, bias, apart, 0, steps, groups)",
    ),
    "attention not scaled": (
        "products",
        "F.scaled_dot_product_attention(query, key, value, attn_mask)",
        "F.scaled_dot_product_attention(query, key, value, attn_mask, scale=1.0)",
    ),
    "zero point added": ("weights", "(quantized_data - zero)", "(quantized_data + zero)"),
    "scales along the first axis": (
        "weights",
        "    shape[axis] = x.shape[axis]",
        "    shape[0] = values.shape[0]",
    ),
    "blocks interleaved": (
        "weights",
        "for size in (m, n // m)]",
        "for size in (n // m, m)]",
    ),
    "palette bits from the high end": (
        "weights",
        "powers = 1 << torch.arange(bits, dtype=torch.int32, device=packed.device)",
        "powers = 1 << torch.arange(bits, dtype=torch.int32, device=packed.device).flip(0)",
    ),
    "palette vectors along another axis": (
        "weights",
        "found.movedim(-1, axis + 1).flatten(axis, axis + 1)",
        "found.movedim(-1, axis).flatten(axis, axis + 1)",
    ),
    "quantize cuts nothing": (
        "weights",
        "    return codes.clamp(least, most).long()",
        "    return codes.long()",
    ),
    "int4 without sign": ("program", "(codes.astype(np.int8) ^ 8) - 8", "codes.astype(np.int8)"),
    "float16 rounded to bfloat16": (
        "evaluate",
        "made.append(value.to(dtype))",
        "made.append(value.bfloat16().to(dtype) if dtype == torch.float16 else value.to(dtype))",
    ),
    "float16 operands not widened": (
        "evaluate",
        "        return x.float()\n    return x if",
        "        return x\n    return x if",
    ),
    "a value let go too early": ("evaluate", "seen |= set(names)", "seen |= set(names[:1])"),
    "narrow sums not rounded": ("products", "total = _half(total + _half(", "total = (total + ("),
}


def test(what: str | None) -> tuple[bool, str]:
    """Whether the tests of a mutant fail, and the first that does; null tests the tree itself."""
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary)
        skip = shutil.ignore_patterns("__pycache__", "*.pyc")
        for name in ("mtu_export", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=skip)
        shutil.copyfile(ROOT / "pyproject.toml", tree / "pyproject.toml")
        if what is not None:
            file, old, new = MUTANTS[what]
            path = tree / MIL / f"{file}.py"
            text = path.read_text("utf-8")
            if text.count(old) != 1:
                raise SystemExit(f"{what}: {old!r} is there {text.count(old)} times")
            path.write_text(text.replace(old, new), "utf-8")
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _run(tree, writer)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as pipe:
            output = pipe.read()
        os.waitpid(child, 0)
    code, _, first = output.partition("\n")
    if code not in ("0", "1"):
        raise SystemExit(f"{what}: pytest ended with {code or 'a crash'}: {first}")
    return code == "1", first


def _run(tree: Path, writer: int) -> None:
    """In the fork: run the tests of a tree, write the code and the first failure, and end."""
    import pytest

    os.chdir(tree)
    sys.path[:] = [str(tree), *(p for p in sys.path if p not in ("", str(ROOT)))]
    output = io.StringIO()
    arguments = ["-x", "-q", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist"]
    with redirect_stdout(output), redirect_stderr(output):
        code = int(pytest.main([*arguments, *(f"tests/targets/{name}" for name in TESTS)]))
    lines = [
        line for line in output.getvalue().splitlines() if line.startswith(("FAILED", "ERROR"))
    ]
    first = lines[0].partition("::")[2].partition(" - ")[0] if lines else ""
    os.write(writer, f"{code}\n{first}".encode())
    os._exit(0)


def page(rows: list[dict[str, str | bool | float]]) -> str:
    """The rows as Markdown."""
    caught = sum(bool(row["caught"]) for row in rows)
    lines = [
        "# Mutants of the MIL evaluator",
        "",
        f"Made by `make mil-mutations` from `mil_mutations.json`: {caught} of {len(rows)} caught. "
        "Each changes the meaning of one operator or rule; the tests of the evaluator must fail. "
        "The first row of the first test stands for a refusal: a shape is not the declared one, so "
        "the package of all operators does not open.",
        "",
        "| file | what is changed | caught by |",
        "|---|---|---|",
    ]
    for row in rows:
        by = f"`{row['by']}`" if row["caught"] else "**survived**"
        lines.append(f"| {row['file']} | {row['mutant']} | {by} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Test the tree, then every mutant; exit 1 where one survives."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import coremltools  # noqa: F401 (loaded once, for all forks)
    import hypothesis  # noqa: F401
    import torch

    torch.set_num_threads(1)
    failed, first = test(None)
    if failed:
        raise SystemExit(f"the tests fail without a mutation: {first}")
    rows: list[dict[str, str | bool | float]] = []
    for what, (file, _, _) in MUTANTS.items():
        if args.only and not any(text in what for text in args.only):
            continue
        start = time.monotonic()
        caught, by = test(what)
        seconds = round(time.monotonic() - start, 1)
        rows.append(
            {"mutant": what, "file": f"{file}.py", "caught": caught, "by": by, "seconds": seconds}
        )
        print(rows[-1], flush=True)
    if not args.only:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "mil_mutations.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
        (args.out / "mil_mutations.md").write_text(page(rows), "utf-8")
    survived = [row["mutant"] for row in rows if not row["caught"]]
    print(f"{len(rows) - len(survived)} of {len(rows)} caught; survived: {survived or 'none'}")
    raise SystemExit(1 if survived else 0)


if __name__ == "__main__":
    main()
