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
NUMPY = {"numpy", "safetensors"}
PYDANTIC = {"pydantic", "pydantic_core"}

# room -> rooms of ours it may import anywhere, and third parties it may import at its top.
# A row refers to rows above it alone, so that no two rooms import each other.
MODELS = {"models", "models.pipeline", "models.mtu", "models.sd", "models.lora", "models.sources"}
RULES: dict[str, tuple[set[str], set[str]]] = {
    "": (set(), set()),  # the package itself: its version, and the public names, imported late
    "spec": (set(), PYDANTIC),
    "storage": ({"spec"}, set()),
    "checkpoint": ({"spec"}, PYDANTIC),
    "graph": ({"spec"}, {"torch"}),
    "models": ({"spec", "checkpoint"}, set()),
    "models.pipeline": (
        {"spec", "checkpoint", "graph"},
        {"torch", "diffusers", "transformers", "numpy"} | PYDANTIC,
    ),
    "models.mtu": (
        {"spec", "checkpoint", "graph", "models", "models.pipeline"},
        {"torch", "diffusers"} | PYDANTIC,
    ),
    "models.sd": (
        {"spec", "checkpoint", "graph", "models", "models.pipeline"},
        {"torch", "diffusers"},
    ),
    "models.sources": ({"spec", "checkpoint"}, PYDANTIC),
    "models.lora": ({"spec", "checkpoint", "models", "models.pipeline"}, {"torch"}),
    "targets": ({"spec"}, set()),
    "targets.reference": ({"spec", "targets"}, {"numpy"}),
    "targets.onnx": ({"spec", "targets"}, {"numpy"}),
    "targets.coreml": ({"spec", "storage", "targets"}, {"numpy"}),
    "targets.coreml.mil": ({"spec", "targets", "targets.coreml"}, {"numpy", "torch"}),
    "targets.executorch": ({"spec", "targets"}, {"numpy"}),
    "bundle": (
        {"spec", "storage", "checkpoint", "targets"},
        NUMPY | PYDANTIC | {"PIL", "tokenizers"},
    ),
    "testing": (
        {"spec", "checkpoint", "bundle", *MODELS},
        {"torch", "diffusers", "transformers", "safetensors"},
    ),
    "exporter": (
        {"spec", "storage", "checkpoint", "graph", "models", "models.lora", "models.sources"}
        | {"targets", "bundle"},
        {"numpy", "torch", "diffusers"},
    ),
    "authoring": (
        {"spec", "storage", "checkpoint", "graph", "testing", *MODELS},
        {"torch", "safetensors"} | PYDANTIC,
    ),
    "training": (
        {"spec", "storage", "checkpoint", "graph", "bundle", "authoring", *MODELS},
        {"torch", "diffusers", "pydantic"},
    ),
    "bench": (
        {"spec", "storage", "checkpoint", "targets", "bundle", "exporter", "models"},
        NUMPY | PYDANTIC | {"filelock"},
    ),
    "cli": (
        {"spec", "storage", "checkpoint", "targets", "bundle", "testing", "exporter", *MODELS}
        | {"authoring", "training", "bench"},
        {"typer", "packaging"},
    ),
    "testing.campaigns": (
        {"spec", "checkpoint", "bundle", "testing", "exporter", "authoring", "cli", *MODELS},
        {"numpy", "torch", "diffusers", "transformers", "PIL", "safetensors"},
    ),
    "__main__": ({"cli"}, set()),
}


def room_of(module: str) -> str:
    """The row of a module of ours: its folder, and of targets the target's own."""
    names = module.split(".")[1:]
    if names[:2] == ["testing", "campaigns"]:
        return "testing.campaigns"
    if names[:3] == ["targets", "coreml", "mil"] and len(names) > 3:
        return "targets.coreml.mil"  # opened by the target's own `open` alone
    packages = (["targets"], ["models"])
    if names[:1] in packages and len(names) > 1:
        return ".".join(names[:2])
    return names[0] if names else ""


def module_of(path: Path) -> str:
    names = [OURS, *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


MODULES = {module_of(path) for path in ROOT.rglob("*.py")}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether at the top) of every import that is not for types alone."""
    imported = []
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
            imported += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                imported.append((inner if inner in MODULES else node.module, id(node) in top))
    return imported


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_imports_follow_the_architecture(path: Path) -> None:
    room = room_of(module_of(path))
    assert room in RULES, f"{room} has no row: say in RULES which room it is"
    ours, third = RULES[room]
    for module, top in imports(path):
        first = module.split(".")[0]
        if first == OURS:
            inner = f"{room}.mil" if room == "targets.coreml" else room
            assert room_of(module) in {*ours, "", room, inner}, f"{room} imports {module}"
        elif top:
            assert first in sys.stdlib_module_names or first in third, f"{room} imports {first}"


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_only_families_name_a_part(path: Path) -> None:
    """Parts are data: a family's flow names them, and no room outside ``models`` does."""
    if room_of(module_of(path)).startswith("models"):
        return
    constants = [
        n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Constant)
    ]
    assert "unet" not in {node.value for node in constants}


def test_no_two_rooms_import_each_other() -> None:
    rooms = list(RULES)
    for index, (room, (ours, _)) in enumerate(RULES.items()):
        assert ours <= set(rooms[:index]), f"{room} is above {ours - set(rooms[:index])}"


def test_the_root_has_at_most_fifteen_entries() -> None:
    entries = {path.name for path in ROOT.iterdir()} - {"__pycache__"}
    assert len(entries) <= 15


def test_benchmarks_and_tests_do_not_import_each_other() -> None:
    """What both need is in mtu_export/testing; tests of the benchmarks' code are beside it."""
    for folder, other in (("benchmarks", "tests"), ("tests", "benchmarks")):
        for path in sorted((ROOT.parent / folder).rglob("*.py")):
            firsts = {module.split(".")[0] for module, _ in imports(path)}
            assert other not in firsts, f"{path.relative_to(ROOT.parent)} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_functions_fit_a_screen(path: Path) -> None:
    """64 lines from the first statement on: a command's signature is the list of its flags."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
            assert (node.end_lineno or 0) - first.lineno < 64, f"{path.name}: {node.name}"


@pytest.mark.parametrize(
    "module",
    [
        "mtu_export",
        "mtu_export.cli",
        "mtu_export.exporter",
        "mtu_export.models.lora",
        "mtu_export.exporter.options",
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
