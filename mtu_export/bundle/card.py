"""The model card of a bundle, ``README.md``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def card(manifest: Mapping[str, Any]) -> str:
    """A model card: what is inside, how near it is to PyTorch, where it comes from."""
    names = ", ".join(task["name"] for task in manifest["tasks"])
    rows = "\n".join(
        f"| {part['component']} | `{part['path']}` | {part['bytes'] / 1e6:.2f} MB "
        f"| {part['cost']['parameters'] / 1e6:.1f} M |"
        for part in manifest["parts"]
    )
    proof = "\n".join(f"| {_proof_row(row)} |" for row in manifest["proof"])
    image, source = manifest["image"], manifest["source"]
    said = sharing(manifest)
    shared = f"{said}.\n\n" if said else ""
    return (
        f"# {manifest['name']}\n\n"
        f"Task {names} of `{source['name']}` for {manifest['target']}, "
        f"scheme {manifest['scheme']['name']}, {image['height']} x {image['width']} pixels. "
        f"Made by mtu-export {manifest['versions']['mtu_export']}; `manifest.json` is the "
        "contract.\n\n"
        "| component | file | size | parameters |\n|---|---|---|---|\n"
        f"{rows}\n\n"
        f"{shared}"
        "## Proof against PyTorch\n\n"
        "| component | task | rung | PSNR | floor | runner |\n|---|---|---|---|---|---|\n"
        f"{proof}\n\n"
        f"Source sha256: `{source['sha256']}`\n"
    )


def sharing(manifest: Mapping[str, Any]) -> str | None:
    """One line on the weights of the first task, and what the others add; null for one task."""
    for part in manifest["parts"]:
        own = part["cost"].get("task_weight_bytes")
        if own:
            first, *others = own.values()
            base, more = max(1, part["cost"]["shared_weight_bytes"] + first), sum(others)
            return (
                f"{len(own)} tasks = {base / 1e6:.2f} MB of weights + {more / base:.2%} "
                f"({more / 1e6:.2f} MB)"
            )
    return None


def _proof_row(row: Mapping[str, Any]) -> str:
    db = "not run" if row["psnr_db"] is None else f"{row['psnr_db']:.1f} dB"
    runner = row["runner"] or row["reason"]
    return " | ".join(
        (row["component"], row["task"], row["rung"], db, f"{row['floor_db']:g} dB", runner)
    )
