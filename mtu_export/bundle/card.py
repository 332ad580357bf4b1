"""The model card of a bundle, ``README.md``."""

from __future__ import annotations

from mtu_export.bundle.manifest import LoraRecord, Manifest, VerdictRecord


def card(manifest: Manifest) -> str:
    """The model card: contents, how close the parts are to PyTorch, and their source."""
    tasks = ", ".join(task.name for task in manifest.tasks)
    parts = "\n".join(
        f"| {part.name} | `{part.path}` | {part.bytes / 1e6:.2f} MB "
        f"| {part.cost.parameters / 1e6:.1f} M |"
        for part in manifest.parts
    )
    proof = "\n".join(f"| {_cells(verdict)} |" for verdict in manifest.proof)
    image, source = manifest.image, manifest.source
    line = sharing(manifest)
    shared = f"{line}.\n\n" if line else ""
    notes = "".join(f"{note}\n\n" for note in source.notes)
    loras = "".join(f"- {_lora(record)}\n" for record in source.loras)
    folded = f"LoRAs folded into the weights, in this order:\n\n{loras}\n" if loras else ""
    return (
        f"# {manifest.name}\n\n"
        f"Task {tasks} of `{source.name}` for {manifest.target}, "
        f"scheme {manifest.scheme.name}, {image.height} x {image.width} pixels. "
        f"Made by mtu-export {manifest.versions['mtu_export']}; `manifest.json` is the "
        "contract.\n\n"
        "| part | file | size | parameters |\n|---|---|---|---|\n"
        f"{parts}\n\n"
        f"{shared}{notes}{folded}"
        "## Proof against PyTorch\n\n"
        "| part | task | stage | PSNR | floor | runner |\n|---|---|---|---|---|---|\n"
        f"{proof}\n\n"
        f"Source sha256: `{source.sha256}`\n"
    )


def sharing(manifest: Manifest) -> str | None:
    """A line on the weights of the first task and what the others add; None for a single task."""
    for part in manifest.parts:
        by_task = part.cost.task_weight_bytes
        if by_task:
            first, *others = by_task.values()
            base, more = max(1, part.cost.shared_weight_bytes + first), sum(others)
            return (
                f"{len(by_task)} tasks = {base / 1e6:.2f} MB of weights + {more / base:.2%} "
                f"({more / 1e6:.2f} MB)"
            )
    return None


def _lora(record: LoraRecord) -> str:
    """File, adapter, scales, layers by method and part, and hash."""
    blocks = "".join(f", {block} {scale:g}" for block, scale in (record.blocks or {}).items())
    forms = ", ".join(f"{count} {form}" for form, count in (record.forms or {}).items())
    layers = ", ".join(f"{count} of {part}" for part, count in record.layers.items())
    return (
        f"`{record.name}`{f' ({record.adapter})' if record.adapter else ''}, "
        f"scale {record.scale:g}{blocks}; layers: {layers}{f' ({forms})' if forms else ''}; "
        f"sha256 `{record.sha256}`"
    )


def _cells(verdict: VerdictRecord) -> str:
    cells = verdict.verdict().cells
    return " | ".join(cells[key] for key in ("part", "task", "stage", "PSNR", "floor", "runner"))
