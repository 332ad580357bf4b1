"""Write the table of README.md, between its two markers, and docs/results.md from the results.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
RESULTS = HERE.parent / "docs" / "results.md"
RAW = "../benchmarks/results"
SD15 = [
    HERE / "results" / f"bench_sd15_{name}.json"
    for name in ("onnx_fp32", "onnx_int8", "executorch_fp32", "executorch_int8")
]
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
        tasks = [r for r in rows if (r["checkpoint"], r["target"], r["scheme"]) == key]
        good = [r for r in tasks if r["exit"] == 0]
        head = f"| {' | '.join(key)} "
        if not good:
            lines.append(f"{head}| {'refused' if tasks[0]['exit'] == 2 else 'failed'} | | | |")
            continue
        lines.append(
            f"{head}| {len(good)} of {len(tasks)} | {spread(good, 'unet')} "
            f"| {spread(good, 'pipeline')} | {max(r['bytes'] for r in good) / 1e6:.2f} MB |"
        )
    return lines


def sizes(results: dict[str, Any]) -> list[str]:
    """Published sizes: a row a model, target and scheme; the worst PSNR of its tasks."""
    lines = [
        "| model | target | scheme | tasks | wall | peak memory | bytes | of fp32 | PSNR |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    names = {"sd15": "SD 1.5", "sdxl": "SDXL"}
    for key in dict.fromkeys((r["model"], r["target"], r["scheme"]) for r in results["rows"]):
        rows = [r for r in results["rows"] if (r["model"], r["target"], r["scheme"]) == key]
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


def loops(ours: dict[str, Any], dense: dict[str, Any], optimum: dict[str, Any]) -> list[str]:
    """Whole loops against programs of other people: the worst PSNR of each."""
    lines = [
        "| bundle (ONNX, fp32), against | cases | last latent, worst | image, worst |",
        "|---|---|---|---|",
    ]
    rows = [{**row, "against": f"dense, diffusers' {row['pipeline']}"} for row in dense["rows"]]
    rows += [{**row, "against": f"MTU, diffusers' {row['pipeline']}"} for row in ours["loops"]]
    rows += [{**row, "against": "MTU, a LoRA beside its weights"} for row in ours["loras"]]
    rows += [{**row, "against": "MTU, optimum-onnx, the same files"} for row in optimum["rows"]]
    for against in dict.fromkeys(row["against"] for row in rows):
        cases = [row for row in rows if row["against"] == against]
        worst = [min(row[key] for row in cases) for key in ("latents_db", "image_db")]
        lines.append(f"| {against} | {len(cases)} | {worst[0]} dB | {worst[1]} dB |")
    return lines


def wholes(results: dict[str, Any]) -> list[str]:
    """Whole pipelines at published sizes: bytes of the bundle, and the loop's PSNR."""
    lines = [
        "| model | target | scheme | task | wall | peak memory | UNet | all | loop |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    names = {"sd15": "SD 1.5", "sdxl": "SDXL"}
    for row in results["pipelines"]:
        head = f"| {names[row['model']]} | {row['target']} | {row['scheme']} | {row['task']} "
        head += f"| {row['wall_s']:.0f} s | {row['peak_rss_gb']:.1f} GB "
        if row["exit"]:
            lines.append(f"{head}| refused | | |")
            continue
        loop = {v["part"]: v["psnr_db"] for v in row["proof"]}["pipeline"]
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


KINDS = {
    "bundle": "MTU, folded",
    "dense": "dense, single task",
    "unfolded": "MTU, router in the graph",
    "plain": "the toolchain's own export",
}


def passes(runs: list[dict[str, Any]]) -> list[str]:
    """A pass of each model: time, share of the engine's peak, memory, bytes, PSNR, MTU's ratio."""
    lines = [
        "| target, scheme | model | pass | GFLOP/s | of peak | memory | bytes | PSNR | MTU / it |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ratios = {
        (r["target"], r["scheme"], r["baseline"]): f"{r['ratio']:.3f} ({r['low']:.3f} to "
        f"{r['high']:.3f})"
        for run in runs
        for r in run["comparisons"]
    }
    for row in (row for run in runs for row in run["measurements"]):
        bundle, latency = row["bundle"], row["latency"]
        key = bundle["target"], bundle["scheme"], row["kind"]
        head = f"| {key[0]} {key[1]} | {KINDS[row['kind']]} "
        if latency is None:
            lines.append(f"{head}| {row['status']}: {row['reason']} | | | | | | |")
            continue
        peak, decibels = row["memory"]["peak_total"], [c["psnr_db"] for c in row["checks"]]
        worst = f"{min(decibels):.1f} dB" if decibels else "not checked"
        share = "" if row["share_of_peak"] is None else f"{row['share_of_peak']:.2f}"
        lines.append(
            f"{head}| {latency['median']:.2f} s | {row['gflops']:.0f} | {share} "
            f"| {peak / 1e9:.1f} GB | {row['work']['bytes'] / 1e6:,.0f} MB | {worst} "
            f"| {ratios.get(key, '')} |"
        )
    return lines


def _not_measured() -> list[str]:
    """A line on the records that nobody has made."""
    names = [path.stem.removeprefix("bench_sd15_") for path in SD15 if not path.is_file()]
    if not names:
        return []
    listed = ", ".join(name.replace("_", " ") for name in names)
    return [f"Not measured: {listed} (`make bench-sd15`).", ""]


def shapes(results: dict[str, Any]) -> list[str]:
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
    for kind, cases in results["cases"].items():
        for model, tasks in results[kind].items():
            cells = [_figure(name, tasks.get(task, {}).get(name)) for task, name in keys]
            lines.append(f"| {model} | {cases} | " + " | ".join(cells) + " |")
    return lines


def _figure(name: str, values: list[float] | None) -> str:
    if values is None:
        return ""
    return f"{values[0]:.1f} dB" if "PSNR" in name else f"{values[0]:.1%}"


def front(rows: list[dict[str, Any]]) -> list[str]:
    """SD 1.5 size: bytes of one and of four tasks, the worst PSNR of the four, memory."""
    lines = [
        "| SD 1.5 UNet, 512 x 512 | one task | four tasks | of the weights in float32 "
        "| worst PSNR | peak memory of the export |",
        "|---|---|---|---|---|---|",
    ]
    order = ("coreml", "onnx", "executorch")
    rows = sorted(
        (row for row in rows if row["size"] == "sd15"),
        key=lambda row: (order.index(row["target"]), -row["shared"]["bundle_bytes"]),
    )
    whole = next(row for row in rows if row["scheme"] == "fp32")["alone"]["inpaint"]["weight_bytes"]
    names = {"coreml": "Core ML", "onnx": "ONNX", "executorch": "ExecuTorch"}
    for row in rows:
        one, four = row["alone"]["inpaint"], row["shared"]
        worst = min(db for name, db in four["db"].items() if name.startswith("unet/"))
        lines.append(
            f"| {names[row['target']]} {row['scheme']} | {one['bundle_bytes'] / 1e6:,.0f} MB "
            f"| {four['bundle_bytes'] / 1e6:,.0f} MB | {four['weight_bytes'] / whole:.3f} "
            f"| {worst:.1f} dB | {four['peak_rss_gb']:.1f} GB |"
        )
    return lines


def _rows(name: str) -> list[str]:
    """The table of a page of results."""
    lines = (HERE / "results" / name).read_text("utf-8").splitlines()
    return [line for line in lines if line.startswith("|")]


def page() -> str:
    """docs/results.md."""
    sd15 = [json.loads(path.read_text("utf-8")) for path in SD15 if path.is_file()]
    world, rows, loops_, dense, optimum, large, several = (
        json.loads((HERE / "results" / f"{name}.json").read_text("utf-8"))
        for name in (
            "shapes_small",
            "conformance",
            "pipelines",
            "dense",
            "optimum",
            "sizes",
            "shared",
        )
    )
    return "\n".join(
        [
            "# Results",
            "",
            "Made by `python benchmarks/readme.py` from the files of `benchmarks/results/`; each "
            "is written by a make target (`make conformance`, `pipelines`, `dense`, `optimum`, "
            "`sizes`, `shared`, `shapes`). Unless a column says otherwise, PSNR is that of a "
            "tensor against PyTorch, 20·log10(max|reference| / rmse), the worst case.",
            "",
            "## The embedded model",
            "",
            "MTU with N = 4, trained here on pictures of shapes, on held-out cases: shares of "
            "pictures that are right, and PSNR of the picture (peak 2, at most 96.0 dB: nothing "
            f"differs) against the true one ([intervals, paired differences]({RAW}/"
            "shapes_small.md)). A picture that is wiped whole scores best in dB inside: whether a "
            "removal is right, with all else still there, is what the share says. MTU is below the "
            "single-task models here, and four experts are no better than one: [their weights]"
            f"({RAW}/shapes_small_router.png) stay near even.",
            "",
            *shapes(world),
            "",
            "## Tasks, targets and schemes",
            "",
            "Tiny pipelines of random weights: the UNet and the whole loop against the live-router "
            f"model ([every row]({RAW}/conformance.md), [the fold alone]({RAW}/fold.md)).",
            "",
            *conformance(rows),
            "",
            "## Against programs of others",
            "",
            "From prompt and noise to a picture in 20 steps, of distilled models in 1 to 4, with "
            f"the same weights, noise and scheduler ([dense pipelines]({RAW}/dense.md), [MTU's "
            f"tasks]({RAW}/pipelines.md), [optimum-onnx]({RAW}/optimum.md)). MTU's InstructPix2Pix "
            'cases use a task file with `"scaled": false`, as that model was trained '
            "([tasks](tasks.md)).",
            "",
            *loops(loops_, dense, optimum),
            "",
            "## Published sizes",
            "",
            "512 x 512, random weights, on three inputs that the exporter did not use ([every row, "
            f"and what was refused]({RAW}/sizes.md)). Wall time includes loading, folding, the "
            "goldens of the live router and the verification, on two cores shared with other "
            "work. Core ML packages were not evaluated in these runs ([SD 1.5's UNet is, in fp16 "
            f"and int8]({RAW}/coreml_ladder.md)).",
            "",
            *sizes(large),
            "",
            f"Whole pipelines, every part and the loop proved ([by part]({RAW}/sizes.md)):",
            "",
            *wholes(large),
            "",
            "## The paper's columns",
            "",
            f"One pass at 512 x 512 ([how it is counted]({RAW}/paper.md)):",
            "",
            *_rows("paper.md"),
            "",
            "## A pass beside its baselines",
            "",
            "The UNet of SD 1.5 at 512 x 512, task inpaint, random weights, on two cores of "
            f"{sd15[0]['device']['model']} ({', '.join(sd15[0]['device']['instructions'])}), 2 "
            "threads: medians of rounds that take turns (2 in float32, 3 in int8); of peak: "
            "of a large float32 matrix product in the same engine; PSNR on the goldens, measured "
            f"by the suite ([the suite](bench.md), [every record]({RAW}/bench.md)). `MTU / it`: "
            "time of the folded MTU over that of the model, the median of the rounds' ratios "
            "with its extremes.",
            "",
            *passes(sd15),
            "",
            *_not_measured(),
            "## Four tasks on one set of weights",
            "",
            "t2i, edit, sr and inpaint in one bundle against one task alone ([latency, memory and "
            f"time of the export]({RAW}/shared.md)):",
            "",
            *shared(several),
            "",
        ]
    )


def main() -> None:
    """Rewrite the README's table and the page of results."""
    RESULTS.write_text(page(), "utf-8")
    several = json.loads((HERE / "results" / "shared.json").read_text("utf-8"))
    before, _, rest = README.read_text("utf-8").partition(BEGIN)
    table = "\n".join([BEGIN, *front(several), END])
    README.write_text(before + table + rest.partition(END)[2], "utf-8")


if __name__ == "__main__":
    main()
