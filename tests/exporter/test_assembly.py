"""An export reads, hashes and keeps each thing once."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtu_export import bundle, exporter, targets
from mtu_export.bundle import hashes, structure
from mtu_export.exporter import options
from mtu_export.exporter.part import _Captured


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file below a bundle is hashed, by name."""
    calls: Counter[str] = Counter()
    digest = hashes.hashlib.file_digest

    def count(stream: Any, name: str) -> Any:
        calls["/".join(Path(stream.name).parts[-2:])] += 1
        return digest(stream, name)

    monkeypatch.setattr(hashes.hashlib, "file_digest", count)
    return calls


@pytest.mark.slow
def test_every_artefact_is_hashed_once_and_its_structure_read_once(
    make_tiny: Callable[..., Path],
    tmp_path: Path,
    counted: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the number of tasks, and of loops that run it."""
    structure._read.cache_clear()
    target, reads = targets.load("reference"), Counter[str]()
    read = type(target).structure

    def count(self: Any, path: Path, entry: str) -> Any:
        reads[f"{path.name} {entry}"] += 1
        return read(self, path, entry)

    monkeypatch.setattr(type(target), "structure", count)
    exported = exporter.export(
        options.resolve(
            target="reference",
            model=make_tiny("atom", whole=True),
            task=["edit", "sr"],
            scheme="fp32",
            out=tmp_path / "b",
        )
    )
    artefacts = [file for part in exported.parts for file in bundle.files_of(part.path)]
    assert len(artefacts) == 4
    for file in artefacts:
        times = [n for name, n in counted.items() if name.endswith(f"/{file.name}")]
        assert times == [1], file.name
    assert set(reads.values()) == {1}
    assert {verdict.task for verdict in exported.proof if verdict.stage == "passes"} == {
        "edit",
        "sr",
    }


def test_a_program_is_taken_once() -> None:
    captured = _Captured(kept=(), _program=object())  # type: ignore[arg-type]
    captured.take_program()
    with pytest.raises(AssertionError, match="was taken before"):
        captured.take_program()


def test_verification_does_not_import_the_exporter() -> None:
    code = (
        "import sys, mtu_export.bundle.verification;"
        "print([n for n in sys.modules if n.startswith('mtu_export.exporter')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
