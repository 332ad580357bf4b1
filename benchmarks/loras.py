"""How near every form of LoRA, folded, is to the program that reads it or to its equation.

    python benchmarks/loras.py [--out benchmarks/results] [--only WORD]

Cases of ``mtu_export.testing.campaigns.lora_forms``. Those of a program that is not importable are
left out; `make loras` brings LyCORIS. ``--only`` measures the cases whose name has this word, and
keeps the other rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mtu_export.testing.campaigns import lora_forms  # noqa: E402

PACKAGES = ("torch", "diffusers", "peft", "lycoris-lora")


def measure(case: lora_forms.Case) -> dict[str, Any]:
    """One row."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            "form": case.form,
            "names": case.names,
            "writer": case.writer,
            "reference": case.reference,
            "psnr_db": round(case.measure(Path(folder)), 1),
        }


def page(rows: list[dict[str, Any]], versions: dict[str, str]) -> str:
    """The table in Markdown."""
    worst = min(rows, key=lambda row: row["psnr_db"])
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        "# LoRAs folded against their references",
        "",
        f"Made by `make loras` from `loras.json` ({used}). Random matrices for the layers of "
        "random tiny SD and SDXL models, weights in float32. Of outputs: ours folds the file, "
        "theirs loads it as its program does and runs it beside the weights; those of diffusers "
        "and PEFT are run in float64, those of LyCORIS layer by layer in float32. Of an equation: "
        "the changed weights against the form's definition in float64. "
        "PSNR = 20·log10(max|ref| / rmse), of the worst part, layer or tensor; the floor is "
        f"{lora_forms.FLOOR_DB:g} dB.",
        "",
        f"The worst of all: **{worst['psnr_db']} dB** ({worst['form']}, {worst['names']}).",
        "",
        "| form | names or variant | written by | compared with | PSNR |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['form']} | `{r['names']}` | {r['writer']} | {r['reference']} | {r['psnr_db']} dB |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the rows, write the tables; exit 1 where one is below the floor."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.out / "loras.json"
    before = json.loads(path.read_text("utf-8"))["rows"] if args.only and path.is_file() else []
    rows = {(row["form"], row["names"], row["reference"]): row for row in before}
    for case in lora_forms.CASES:
        key = case.form, case.names, case.reference
        if args.only and args.only not in str(case):
            continue
        if not case.runs:
            print(f"left out: {case}: {case.needs} is not installed", flush=True)
            continue
        rows[key] = measure(case)
        print(rows[key], flush=True)
    versions = {name: metadata.version(name) for name in PACKAGES if _installed(name)}
    order = [(case.form, case.names, case.reference) for case in lora_forms.CASES]
    ordered = [rows[key] for key in order if key in rows]
    document = {"versions": versions, "floor_db": lora_forms.FLOOR_DB, "rows": ordered}
    args.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    (args.out / "loras.md").write_text(page(ordered, versions), "utf-8")
    sys.exit(0 if all(row["psnr_db"] >= lora_forms.FLOOR_DB for row in ordered) else 1)


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


if __name__ == "__main__":
    main()
