"""Export or verify a mutant, which must end in an ``MtuExportError`` or a correct result."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

from mtu_export.models.pipeline.layout import UNET

CORRECT = "correct export"
VERIFIED = "verified"
"""Outcomes without an error, for a checkpoint and for a bundle."""


class Unexpected(Exception):
    """An outcome that is neither an ``MtuExportError`` nor a correct result."""


def _error_class(error: Exception) -> str:
    """Name of an error's class; its message must be one printable line."""
    text = str(error)
    if not text or not text.isprintable() or len(text) > 2000:
        raise Unexpected(f"{type(error).__name__} is not one printable line: {text!r:.200}")
    return type(error).__name__


def _inspect(folder: Path) -> None:
    from mtu_export import bundle, checkpoint
    from mtu_export.cli import report
    from mtu_export.exporter import inspection

    if (folder / bundle.MANIFEST).is_file():
        summary = inspection.of_bundle(bundle.read(folder))
    else:
        summary = inspection.of_checkpoint(checkpoint.locate(folder))
    with contextlib.redirect_stdout(io.StringIO()) as text:
        report.show(summary)
    text.getvalue().encode("utf-8")
    json.dumps(summary).encode("utf-8")


def attempt(folder: Path, task: str | None, target: str, workspace: Path) -> tuple[str, str]:
    """Inspect and export a mutated checkpoint into the empty folder ``workspace``.

    ``target`` is ``diffusers``, which only folds, or one whose float32 bundle is proved: ``onnx``,
    or ``reference`` if no toolchain is to be tested. Returns the error's class or ``CORRECT``, and
    a message. Raises ``Unexpected``.
    """
    from mtu_export import exporter
    from mtu_export.exporter import options
    from mtu_export.spec import MtuExportError

    with contextlib.suppress(MtuExportError):
        _inspect(folder)
    writes_bundle = target != "diffusers"
    try:
        parts = [UNET] if writes_bundle else ()
        plan = options.resolve(
            target=target,
            model=folder,
            task=task,
            scheme="fp32",
            components=parts,
            out=workspace / "out",
        )
        if max(plan.height, plan.width) > 256:  # a large latent is legal, but slow
            plan = options.resolve(
                target=target,
                model=folder,
                task=task,
                components=parts,
                out=plan.out,
                height=256,
                width=256,
            )
        if writes_bundle:
            proof = exporter.export(plan).proof
        else:
            exporter.save_folded(plan)
    except MtuExportError as error:
        if list(workspace.iterdir()):
            raise Unexpected(
                f"left {sorted(p.name for p in workspace.iterdir())} after: {error}"
            ) from None
        return _error_class(error), str(error)
    if [path.name for path in workspace.iterdir()] != ["out"]:
        raise Unexpected(
            f"left more than its output: {sorted(p.name for p in workspace.iterdir())}"
        )
    if writes_bundle:
        if not all(stage.passed for stage in proof) or len(proof) != 2:
            raise Unexpected(f"kept an export without proof: {proof}")
        return CORRECT, ", ".join(f"{stage.psnr_db} dB" for stage in proof)
    return CORRECT, _open_folded(workspace / "out")


def _open_folded(folder: Path) -> str:
    import torch
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    assert isinstance(unet, torch.nn.Module)
    for name, value in unet.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise Unexpected(f"the folded {name} is not finite")
    return "diffusers opens it"


def attempt_bundle(folder: Path) -> tuple[str, str]:
    """Inspect and verify a mutated bundle; returns as :func:`attempt`, with ``VERIFIED``."""
    from mtu_export import bundle
    from mtu_export.bundle import metrics, verification
    from mtu_export.spec import MtuExportError, ParityError

    before = sorted(folder.rglob("*"))
    with contextlib.suppress(MtuExportError):
        _inspect(folder)
    try:
        failed = metrics.failure(verification.verify_bundle(bundle.read(folder)))
        if failed is not None:
            raise ParityError(failed)
    except MtuExportError as error:
        return _error_class(error), str(error)
    finally:
        if sorted(folder.rglob("*")) != before:
            raise Unexpected("verify wrote into the bundle")
    return VERIFIED, ""
