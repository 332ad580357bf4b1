"""What our own road makes of a mutant: an error of our tree, or a correct export."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

CORRECT = "correct export"
VERIFIED = "verified"
"""Ends of a checkpoint and of a bundle that are no error."""


class Unexpected(Exception):
    """An end that is neither an error of our tree nor a correct export."""


def _refused(error: Exception) -> str:
    """The class of an error of ours, whose message must be one printable line."""
    text = str(error)
    if not text or not text.isprintable() or len(text) > 2000:
        raise Unexpected(f"{type(error).__name__} is not one printable line: {text!r:.200}")
    return type(error).__name__


def _inspect(folder: Path) -> None:
    from mtu_export import bundle, checkpoint
    from mtu_export.cli import report
    from mtu_export.exporter import inspection

    if (folder / bundle.MANIFEST).is_file():
        found = inspection.of_bundle(bundle.read(folder))
    else:
        found = inspection.of_checkpoint(checkpoint.locate(folder))
    with contextlib.redirect_stdout(io.StringIO()) as text:
        report.show(found)
    text.getvalue().encode("utf-8")
    json.dumps(found).encode("utf-8")


def attempt(folder: Path, task: str | None, target: str, home: Path) -> tuple[str, str]:
    """Inspect and export a mutated checkpoint into the empty folder ``home``.

    The target is ``diffusers``, which is the fold alone, or one whose float32 bundle is proved:
    ``onnx``, or ``reference`` where the toolchain is not what is tested. Returns the class of the
    error, or ``CORRECT``, and the message. Raises ``Unexpected``.
    """
    from mtu_export import exporter
    from mtu_export.exporter import options
    from mtu_export.spec import MtuExportError

    with contextlib.suppress(MtuExportError):
        _inspect(folder)
    whole = target != "diffusers"
    try:
        parts = ["unet"] if whole else ()
        made = options.resolve(
            target=target,
            model=folder,
            task=task,
            scheme="fp32",
            components=parts,
            out=home / "out",
        )
        if max(made.height, made.width) > 256:  # a large latent is legal, and slow
            made = options.resolve(
                target=target,
                model=folder,
                task=task,
                components=parts,
                out=made.out,
                height=256,
                width=256,
            )
        if whole:
            proof = exporter.export(made).proof
        else:
            exporter.save_folded(made)
    except MtuExportError as error:
        if list(home.iterdir()):
            raise Unexpected(
                f"left {sorted(p.name for p in home.iterdir())} after: {error}"
            ) from None
        return _refused(error), str(error)
    if [path.name for path in home.iterdir()] != ["out"]:
        raise Unexpected(f"left more than its output: {sorted(p.name for p in home.iterdir())}")
    if whole:
        if not all(row.passed for row in proof) or len(proof) != 2:
            raise Unexpected(f"kept an export without proof: {proof}")
        return CORRECT, ", ".join(f"{row.psnr_db} dB" for row in proof)
    return CORRECT, _open_folded(home / "out")


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
    """Inspect and verify a mutated bundle; as :func:`attempt`, with ``VERIFIED``."""
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
        return _refused(error), str(error)
    finally:
        if sorted(folder.rglob("*")) != before:
            raise Unexpected("verify wrote into the bundle")
    return VERIFIED, ""
