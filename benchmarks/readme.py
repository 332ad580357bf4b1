"""Put the measured tables into README.md, between its two markers, from benchmarks/results.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- results: made by `python benchmarks/readme.py` -->", "<!-- /results -->"


def spread(rows: list[dict[str, Any]], key: str) -> str:
    """Smallest and largest PSNR of a column of the ladder over rows."""
    values = sorted(row["proof"][key] for row in rows if row["proof"][key] is not None)
    return f"{values[0]:.1f} to {values[-1]:.1f} dB" if values else "not run"


def conformance(rows: list[dict[str, Any]]) -> list[str]:
    """One line a checkpoint, target and scheme: PSNR and bytes over all tasks."""
    lines = [
        "| checkpoint (random weights) | target | scheme | tasks | UNet | loop | bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    keys = dict.fromkeys((r["checkpoint"], r["target"], r["scheme"]) for r in rows)
    for key in keys:
        found = [r for r in rows if (r["checkpoint"], r["target"], r["scheme"]) == key]
        good = [r for r in found if r["exit"] == 0]
        head = f"| {' | '.join(key)} "
        if not good:
            lines.append(f"{head}| {'refused' if found[0]['exit'] == 2 else 'failed'} | | | |")
            continue
        lines.append(
            f"{head}| {len(good)} of {len(found)} | {spread(good, 'unet')} "
            f"| {spread(good, 'pipeline')} | {max(r['bytes'] for r in good) / 1e6:.2f} MB |"
        )
    return lines


def sizes(found: dict[str, Any]) -> list[str]:
    """Published sizes: a row a model, target and scheme; the worst PSNR of its tasks."""
    lines = [
        "| model | target | scheme | tasks | wall | peak memory | bytes | of fp32 | PSNR |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    names = {"sd15": "SD 1.5", "sdxl": "SDXL"}
    for key in dict.fromkeys((r["model"], r["target"], r["scheme"]) for r in found["rows"]):
        rows = [r for r in found["rows"] if (r["model"], r["target"], r["scheme"]) == key]
        good = [r for r in rows if r["exit"] == 0]
        head = f"| {names[key[0]]} | {key[1]} | {key[2]} "
        if not good:
            kind = {2: "refused", 6: "refused: memory"}.get(rows[0]["exit"], "failed")
            lines.append(f"{head}| {kind} | | | | | |")
            continue
        db = [r["fresh_db"] for r in good]
        worst = "not run" if None in db else f"{min(db):.1f} dB"
        lines.append(
            f"{head}| {len(good)} of {len(rows)} | {max(r['wall_s'] for r in good):.0f} s "
            f"| {max(r['peak_rss_gb'] for r in good):.1f} GB | {max(r['bytes'] for r in good):,} "
            f"| {max(r['of_fp32'] for r in good):.3f} | {worst} |"
        )
    return lines


def loops(ours: dict[str, Any], optimum: dict[str, Any]) -> list[str]:
    """Whole loops against programs of other people: the worst PSNR of each."""
    lines = [
        "| bundle (ONNX, fp32), against | cases | last latent, worst | image, worst |",
        "|---|---|---|---|",
    ]
    rows = [{**row, "against": f"diffusers' {row['pipeline']}"} for row in ours["loops"]]
    rows += [{**row, "against": "the same, a LoRA beside its weights"} for row in ours["loras"]]
    rows += [{**row, "against": "optimum-onnx, the same files"} for row in optimum["rows"]]
    for against in dict.fromkeys(row["against"] for row in rows):
        found = [row for row in rows if row["against"] == against]
        worst = [min(row[key] for row in found) for key in ("latents_db", "image_db")]
        lines.append(f"| {against} | {len(found)} | {worst[0]} dB | {worst[1]} dB |")
    return lines


def wholes(found: dict[str, Any]) -> list[str]:
    """Whole pipelines at published sizes: bytes of the bundle, and the loop's PSNR."""
    lines = [
        "| model | target | scheme | task | wall | peak memory | UNet | all | loop |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    names = {"sd15": "SD 1.5", "sdxl": "SDXL"}
    for row in found["pipelines"]:
        head = f"| {names[row['model']]} | {row['target']} | {row['scheme']} | {row['task']} "
        head += f"| {row['wall_s']:.0f} s | {row['peak_rss_gb']:.1f} GB "
        if row["exit"]:
            lines.append(f"{head}| refused | | |")
            continue
        loop = {v["component"]: v["psnr_db"] for v in row["proof"]}["pipeline"]
        shown = "not run" if loop is None else f"{loop:.1f} dB"
        unet = row["parts"]["unet"]["bytes"]
        lines.append(f"{head}| {unet / 1e6:.0f} MB | {row['bytes'] / 1e6:.0f} MB | {shown} |")
    return lines


def shared(rows: list[dict[str, Any]]) -> list[str]:
    """Bundles of four tasks over those of one, at published size; bytes of weights and of all."""
    lines = [
        "| SD 1.5 | one task | four tasks | weights | folder | of a task's own |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        one, four = row["alone"]["inpaint"], row["shared"]
        if not row["size"].startswith("sd15") or one["exit"] or four["exit"]:
            continue
        name = f"{row['target']} {row['scheme']}"
        name += ", all parts" if row["size"].endswith("-whole") else ", UNet"
        own = max((four["task_weight_bytes"] or {"": 0}).values())
        lines.append(
            f"| {name} | {one['bundle_bytes'] / 1e6:.1f} MB | {four['bundle_bytes'] / 1e6:.1f} MB "
            f"| {four['weight_bytes'] / one['weight_bytes']:.3f} x "
            f"| {four['bundle_bytes'] / one['bundle_bytes']:.3f} x | {own / 1e6:.2f} MB |"
        )
    return lines


def shapes(found: dict[str, Any]) -> list[str]:
    """The trained model of the small world: a row a model or artefact, its first measures."""
    measures = {
        "t2i": ("all right",),
        "edit": ("done, rest unchanged",),
        "sr": ("PSNR",),
        "inpaint": ("removed, rest unchanged", "PSNR inside", "PSNR outside"),
    }
    keys = [(task, name) for task, names in measures.items() for name in names]
    lines = [
        "| model | cases | " + " | ".join(f"{task}: {name}" for task, name in keys) + " |",
        "|---|---|" + "---|" * len(keys),
    ]
    for kind, cases in found["cases"].items():
        for model, tasks in found[kind].items():
            cells = [_figure(name, tasks.get(task, {}).get(name)) for task, name in keys]
            lines.append(f"| {model} | {cases} | " + " | ".join(cells) + " |")
    return lines


def _figure(name: str, values: list[float] | None) -> str:
    if values is None:
        return ""
    return f"{values[0]:.1f} dB" if "PSNR" in name else f"{values[0]:.1%}"


def main() -> None:
    """Rewrite the block between the markers."""
    rows = json.loads((HERE / "results" / "conformance.json").read_text("utf-8"))
    large = json.loads((HERE / "results" / "sizes.json").read_text("utf-8"))
    whole, optimum, world, several = (
        json.loads((HERE / "results" / f"{name}.json").read_text("utf-8"))
        for name in ("pipelines", "optimum", "shapes_small", "shared")
    )
    text = "\n".join(
        [
            BEGIN,
            "The embedded model, trained here on pictures of shapes, on held-out cases: shares of "
            "pictures that are right, PSNR (peak 2, at most 96.0 dB: nothing differs) against the "
            "true picture ([intervals, paired differences](benchmarks/results/shapes_small.md)). A "
            "picture that is wiped whole is best in dB inside: that a removal is right, and all "
            "else is still there, is what the share says.",
            "",
            *shapes(world),
            "",
            "Tasks of tiny pipelines, the UNet and the whole loop against the live-router model "
            "([all rows](benchmarks/results/conformance.md), "
            "[the fold alone](benchmarks/results/fold.md)):",
            "",
            *conformance(rows),
            "",
            "From words and noise to a picture in 20 steps, against programs that nobody here "
            "wrote, with the same weights, noise and scheduler "
            "([each pipeline and scheduler](benchmarks/results/pipelines.md), "
            "[optimum-onnx](benchmarks/results/optimum.md)):",
            "",
            *loops(whole, optimum),
            "",
            "At published sizes, 512 x 512, random weights, on three inputs that the exporter did "
            "not use ([all rows, and what was refused](benchmarks/results/sizes.md)). Wall time "
            "includes loading, folding, the goldens of the live router and the verification, on 2 "
            "cores that were shared with other work. Core ML packages were not evaluated here "
            "([SD 1.5's UNet in fp16 and int8 is](benchmarks/results/coreml_ladder.md)):",
            "",
            *sizes(large),
            "",
            "Whole pipelines, every part and the loop proved ([by part]"
            "(benchmarks/results/sizes.md)):",
            "",
            *wholes(large),
            "",
            "Four tasks (t2i, edit, sr, inpaint) in one bundle over one alone; latency, memory "
            "and time of the export are [measured too](benchmarks/results/shared.md):",
            "",
            *shared(several),
            END,
        ]
    )
    page = README.read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    README.write_text(before + text + rest.partition(END)[2], "utf-8")


if __name__ == "__main__":
    main()
