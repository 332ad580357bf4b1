"""The check of the stub of CoreML: it passes, and it sees what drifts."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOL = Path(__file__).parents[2] / "runtime" / "ios" / "tools" / "coreml_stub.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coreml_stub", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["coreml_stub"] = module
    spec.loader.exec_module(module)
    return module


tool = load()


@pytest.fixture(scope="module")
def apple() -> Any:
    """Apple's headers as pyobjc has them; the download is skipped where there is no network."""
    try:
        path = tool.cached()
    except OSError as error:
        if os.environ.get("MTU_REQUIRE_TOOLS"):
            raise
        pytest.skip(f"pyobjc's metadata cannot be had: {error}")
    return tool.headers(tool.read(path))


def test_the_stub_is_what_apples_headers_say(apple: Any) -> None:
    stub = list(tool.declarations())
    assert len(stub) > 30
    assert list(tool.problems(stub, apple)) == []


def drifted(apple: Any, tmp_path: Path, old: str, new: str) -> list[str]:
    """What the check says of the stub with a text replaced."""
    count = 0
    for path in tool.STUB.glob("ML*.swift"):
        text = path.read_text("utf-8")
        count += text.count(old)
        (tmp_path / path.name).write_text(text.replace(old, new, 1), "utf-8")
    assert count >= 1, old
    return list(tool.problems(list(tool.declarations(tmp_path)), apple))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("setFunctionName:]", "setFunction:]", "Apple's headers have no -[MLModelConfiguration"),
        ("@available(macOS 15.0, iOS 18.0, *)", "", "came with macOS (15, 0), the stub says None"),
        ("macOS 15.0, iOS 18.0", "macOS 14.0, iOS 17.0", "the stub says (14, 0)"),
        ("macOS 15.0, iOS 18.0", "macOS 15.0, iOS 17.0", "is not the iOS of macOS (15, 0)"),
        ("case float16 = 65552", "case float16 = 65553", "is 65552, not 65553"),
        ("// objc: MLModelConfiguration\n", "// objc: MLModelSettings\n", "no MLModelSettings"),
        ("// overlay: compileModel(at:)", "// overlay: compile(at:)", "is not in the list"),
        ("  // objc: -[MLMultiArray count]\n", "", "neither objc: nor overlay:"),
    ],
)
def test_what_drifts_is_seen(apple: Any, tmp_path: Path, old: str, new: str, says: str) -> None:
    lines = drifted(apple, tmp_path, old, new)
    assert any(says in line for line in lines), lines


def test_overlays_are_few_and_have_a_page() -> None:
    assert len(tool.OVERLAY) <= 10
    for selector, page in tool.OVERLAY.values():
        assert selector.startswith(("-[ML", "+[ML"))
        assert page.startswith("https://developer.apple.com/documentation/coreml/")
