"""SD 1.5 size: one task to two targets; wall time, peak memory, bytes, dB.

    python benchmarks/sd15.py [--home ~/.cache/mtu-export/sd15] [--out benchmarks/results]

The checkpoint (869 M parameters, random weights, 3.5 GB) is made once under `--home`. Every
command runs in a process of its own, whose peak resident set the kernel reports (`wait4`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

EXPORTS = (("onnx", "fp32"), ("coreml", "int8"))


def measure(words: list[str], log: Path) -> dict[str, Any]:
    """Wall seconds, peak RSS in GB and exit code of one command of ours."""
    start = time.monotonic()
    with log.open("w") as stream:
        child = subprocess.Popen(
            [sys.executable, "-m", "mtu_export", *words], stdout=stream, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(child.pid, 0)
    return {
        "command": "mtu-export " + " ".join(w for w in words if not w.startswith("/")),
        "exit": os.waitstatus_to_exitcode(status),
        "wall_s": round(time.monotonic() - start, 1),
        "peak_rss_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
    }


def main() -> None:
    """Make the checkpoint, export, write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, default=Path.home() / ".cache/mtu-export/sd15")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    words = parser.parse_args()
    words.home.mkdir(parents=True, exist_ok=True)
    model, log, rows = words.home / "checkpoint", words.home / "log.txt", []
    if not model.is_dir():
        found = measure(["upcycle", "--arch", "sd15", "--random", str(model)], log)
        rows.append({"what": "upcycle --arch sd15 --random", **found})
        print(rows[-1], flush=True)
    for target, scheme in EXPORTS:
        out = words.home / "bundle"
        shutil.rmtree(out, ignore_errors=True)
        command = [target, "-m", str(model), "--task", "inpaint", "--scheme", scheme]
        row = {"what": f"inpaint, {target}, {scheme}", **measure([*command, "-o", str(out)], log)}
        if row["exit"] == 0:
            manifest = json.loads((out / "manifest.json").read_text("utf-8"))
            row["bytes"] = sum(part["bytes"] for part in manifest["parts"])
            row["cost"] = manifest["parts"][0]["cost"]
            row["proof"] = manifest["proof"]
        rows.append(row)
        print(row, log.read_text("utf-8"), flush=True)
        shutil.rmtree(out, ignore_errors=True)
    words.out.mkdir(parents=True, exist_ok=True)
    (words.out / "sd15.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    lines = [
        "# SD 1.5 size (869 M parameters, 512 x 512, random weights)",
        "",
        "Made by `make sd15` from `sd15.json`. Wall time includes loading, folding, the goldens of "
        "the live router and the verification; the machine has 2 cores and was shared.",
        "",
        "| what | wall | peak RSS | bytes | proof |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        proof = "; ".join(
            f"{v['rung']} " + (f"{v['psnr_db']} dB" if v["psnr_db"] else f"not run: {v['reason']}")
            for v in row.get("proof", ())
        )
        size = f"{row['bytes']:,}" if "bytes" in row else ""
        lines.append(
            f"| {row['what']} | {row['wall_s']:.0f} s | {row['peak_rss_gb']:.1f} GB | {size} "
            f"| {proof} |"
        )
    (words.out / "sd15.md").write_text("\n".join(lines) + "\n", "utf-8")
    raise SystemExit(max(row["exit"] for row in rows))


if __name__ == "__main__":
    main()
