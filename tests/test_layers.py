"""The house rules: who imports whom, what an import costs, how long a file is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mtu_export

ROOT = Path(mtu_export.__file__).parent
OURS = "mtu_export"
HEAVY = {"torch", "diffusers", "transformers", "onnx", "onnxruntime", "coremltools", "executorch"}
PACKAGES = ("spec", "cli", "checkpoint", "bundle", "exporter", "lora", "training")  # one room each
FREE = {"spec", "draft", ""}  # "": the package's own name and version
NUMPY = {"numpy", "safetensors"}

# room -> rooms of ours it may import anywhere, and third parties it may import at its top
RULES: dict[str, tuple[set[str], set[str]]] = {
    "spec": (set(), set()),
    "draft": ({"spec"}, set()),
    "catalog": ({"spec"}, set()),
    "checkpoint": ({"spec"}, set()),
    "parts": ({"checkpoint"}, set()),
    "plan": ({"catalog", "checkpoint", "targets"}, set()),
    "models.blocks": (set(), {"torch"}),
    "models.experts": (set(), {"torch", "diffusers"}),
    "models.stock": ({"models.blocks", "checkpoint"}, {"torch", "diffusers", "transformers"}),
    "models.mtu": (
        {"models.blocks", "models.experts", "fold", "checkpoint"},
        {"torch", "diffusers"},
    ),
    "fold": ({"models.blocks"}, {"torch"}),
    "quantize": ({"models.blocks"}, {"torch"}),
    "rewrite": ({"models.blocks"}, {"torch"}),
    "capture": ({"models.blocks"}, {"torch"}),
    "seeded": (set(), NUMPY),
    "random_parts": ({"catalog", "checkpoint", "models.stock", "vocabulary"}, {"torch"}),
    "tokenizer": ({"checkpoint", "vocabulary"}, {"numpy", "tokenizers"}),
    "vocabulary": (set(), set()),
    "upcycle": (
        {"models.mtu", "models", "checkpoint", "catalog", "parts", "plan", "random_parts"},
        {"torch"},
    ),
    "adopt": (
        {"adopt.fitting", "adopt.layout", "adopt.mapping", "catalog", "checkpoint", "models.mtu"}
        | {"models", "parts", "plan"},
        {"torch", "safetensors"},
    ),
    "adopt.fitting": ({"adopt.layout", "adopt.mapping"}, set()),
    "adopt.layout": ({"adopt.mapping", "checkpoint"}, set()),
    "adopt.mapping": (set(), set()),
    "lora": ({"checkpoint", "models"}, set()),
    "training": (
        {"catalog", "checkpoint", "models", "models.blocks", "models.mtu", "models.stock", "parts"}
        | {"pictures", "plan", "tokenizer", "upcycle"},
        {"torch", "diffusers"},
    ),
    "schedule": ({"catalog", "checkpoint"}, {"torch", "diffusers"}),
    "sampler": (set(), NUMPY),
    "pictures": (set(), {"numpy", "PIL"}),
    "verify": (set(), NUMPY),
    "bundle": (set(), NUMPY),
    "targets": (set(), set()),
    "targets.onnx": ({"targets.onnx", "catalog", "checkpoint"}, {"numpy"}),
    "targets.coreml": ({"targets.coreml"}, {"numpy"}),
    "targets.coreml.mil": ({"targets.coreml"}, {"numpy", "torch"}),
    "targets.executorch": ({"targets.executorch"}, {"numpy"}),
    "models": (set(), set()),
    "exporter": (
        {"budget", "bundle", "capture", "catalog", "checkpoint", "generate", "lora"}
        | {"manifest", "models", "models.blocks", "models.stock", "plan", "quantize", "rewrite"}
        | {"sampler", "schedule", "seeded", "sensitivity", "targets", "tokenizer", "verify"},
        {"numpy"},
    ),
    "generate": ({"bundle", "pictures", "sampler", "targets", "tokenizer"}, {"numpy"}),
    "budget": ({"catalog", "checkpoint", "plan", "targets"}, set()),
    "manifest": ({"bundle", "checkpoint", "plan", "targets"}, set()),
    "sensitivity": ({"capture", "quantize", "verify", "models.blocks"}, {"torch"}),
    "console": (set(), set()),
    "anatomy": ({"capture", "checkpoint", "models", "models.blocks", "plan"}, set()),
    "plot": ({"anatomy", "console"}, set()),
    "report": (
        {"anatomy", "bundle", "catalog", "checkpoint", "console", "models", "targets"},
        {"packaging"},
    ),
    "cli": (
        {"adopt", "bundle", "catalog", "checkpoint", "console", "exporter", "generate", "pictures"}
        | {"plan", "plot", "report", "targets", "training", "upcycle", "verify"},
        {"typer"},
    ),
    "__main__": ({"cli"}, set()),
    "__init__": (set(), set()),
}


def room_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[:3] == ["targets", "coreml", "mil"] and parts[-1] != "__init__":
        return "targets.coreml.mil"  # opened by the target's own `open` alone
    if parts[0] == "targets" and len(parts) > 2:
        return f"targets.{parts[1]}"
    if parts[0] in PACKAGES:
        return parts[0]
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether at the top) of every import that is not for types alone."""
    found = []
    tree = ast.parse(path.read_text("utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == OURS or node.module.startswith(OURS + ".models"):
                known = {p.stem for p in ROOT.glob("*.py")} | {"targets", "models", *PACKAGES}
                deeper = [a.name for a in node.names]
                for name in deeper:
                    inner = f"{node.module}.{name}"
                    is_module = name in known or (ROOT / "models" / f"{name}.py").exists()
                    found.append((inner if is_module else node.module, id(node) in top))
            else:
                found.append((node.module, id(node) in top))
    return found


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_imports_follow_the_architecture(path: Path) -> None:
    room = room_of(path)
    assert room in RULES, f"{room} has no row: say in architecture which room it is"
    ours, third = RULES[room]
    for module, top in imports(path):
        first = module.split(".")[0]
        if first == OURS:
            inner = module.removeprefix(OURS).lstrip(".")
            inner = inner.split(".")[0] if inner.split(".")[0] in PACKAGES else inner
            if inner.startswith("targets."):
                inner = ".".join(inner.split(".")[:2])
            assert inner in ours | FREE or room == inner, f"{room} imports {inner}"
        elif top:
            assert first in sys.stdlib_module_names or first in third, f"{room} imports {first}"


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 400


@pytest.mark.parametrize(
    "module",
    [
        "mtu_export",
        "mtu_export.cli",
        "mtu_export.exporter",
        "mtu_export.lora",
        "mtu_export.plan",
        "mtu_export.training",
    ],
)
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {HEAVY!r}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_public_names_are_sorted_and_resolve() -> None:
    assert mtu_export.__all__ == sorted(mtu_export.__all__)
    for name in mtu_export.__all__:
        assert getattr(mtu_export, name) is not None
    with pytest.raises(AttributeError):
        mtu_export.nothing  # noqa: B018
