"""Bundles of several tasks that a forger changed, hashes recomputed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtu_export import bundle
from mtu_export.bundle import Bundle, verification
from mtu_export.spec import BundleError
from mtu_export.targets.coreml import package

pytestmark = pytest.mark.slow
TWO = ("edit", "sr")
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="session")
def coreml(bundles: Callable[..., Path]) -> Bundle:
    return bundle.read(bundles("coreml", "int8", TWO))


def forge(exported: Bundle, out: Path, change: Change) -> Bundle:
    """A copy whose part ``change`` has changed, its file or its row of the manifest."""
    shutil.copytree(exported.folder, out)
    manifest = json.loads((out / bundle.MANIFEST).read_text("utf-8"))
    (part,) = manifest["parts"]
    change(part)
    part["bytes"], part["sha256"] = (
        bundle.size(out / part["path"]),
        bundle.sha256(out / part["path"]),
    )
    (out / bundle.MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return bundle.read(out)


def _no_witness_of_one(part: dict[str, Any]) -> None:
    del part["witness"]["sr"]


def _no_numbers(part: dict[str, Any]) -> None:
    part["witness"]["sr"] = None


def _no_object(part: dict[str, Any]) -> None:
    part["witness"] = [1.0]


@pytest.mark.parametrize("change", [_no_witness_of_one, _no_numbers, _no_object])
def test_a_witness_of_one_task_alone_is_refused(
    change: Change, coreml: Bundle, tmp_path: Path
) -> None:
    reasons = r"the witness of unet has no task 'sr'|witness(\.sr)?: must be an? (list|object), got"
    with pytest.raises(BundleError, match=reasons):
        verification.verify_bundle(forge(coreml, tmp_path / "b", change))


def _described_twice(model: Any) -> None:
    functions = model.description.functions
    functions.add().CopyFrom(functions[1])


def _not_described(model: Any) -> None:
    model.mlProgram.functions["more"].CopyFrom(model.mlProgram.functions["sr"])


def _described_alone(model: Any) -> None:
    model.description.functions.add().CopyFrom(model.description.functions[1])
    model.description.functions[-1].name = "more"


def _one_for_all(model: Any) -> None:
    described = model.description
    described.input.extend(described.functions[0].input)
    described.output.extend(described.functions[0].output)
    del described.functions[:]


def _default_is_none(model: Any) -> None:
    model.description.defaultFunctionName = "more"


@pytest.mark.parametrize(
    "change",
    [_described_twice, _not_described, _described_alone, _default_is_none, _one_for_all],
)
def test_a_package_that_declares_other_functions_than_it_has_is_refused(
    change: Callable[[Any], None], coreml: Bundle, tmp_path: Path
) -> None:
    """Which of two equal names a system takes, or whether it opens such a package, is unknown."""
    path = tmp_path / "Unet.mlpackage"
    shutil.copytree(coreml.part("unet").path, path)
    model: Any = package.parse(path)
    change(model)
    (path / "Data" / package.MODEL).write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="description and program disagree on functions"):
        package.structure(path, "edit")


def test_weights_of_another_format_are_refused(coreml: Bundle, tmp_path: Path) -> None:
    """Core ML reads the version in the weight file's own header."""
    path = tmp_path / "Unet.mlpackage"
    shutil.copytree(coreml.part("unet").path, path)
    with (path / "Data" / package.WEIGHT_FILE).open("r+b") as file:
        file.seek(4)
        file.write(b"\x09")
    with pytest.raises(BundleError, match=r"weight\.bin is not of format 2"):
        package.structure(path, "edit")
