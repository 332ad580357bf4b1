"""Bad input as a campaign: mutated checkpoints and bundles, and how each ends.

    python benchmarks/mutations.py [--count 1000] [--seed 0]

Mutant n of a seed is the same on every run (`mtu_export.testing` makes it). It runs in a child
process of up to 125 mutants, so that a crash or a hang is one row. A row that is done is kept under
`~/.cache/mtu-export/mutations` and not run again; `--fresh` starts anew, `--again` runs only what
ended as anything else. Legal ends: an error of our tree with nothing left on disk, a correct
export, a bundle that verifies.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from mtu_export.testing.campaigns import mutations  # noqa: E402

STATE = Path.home() / ".cache" / "mtu-export" / "mutations"
CHUNK = 125
BUNDLES, WHOLE = 0.12, 0.3
"""Shares of mutated bundles, and of whole exports among the checkpoints."""
LIMIT = 60
"""Seconds of processor time after which a mutant counts as a hang."""
PATIENCE = 300
"""Seconds on the clock after which it is killed."""
ELSE = "anything else"


def make(number: int, seed: int, work: Path) -> tuple[dict[str, Any], Path, str | None]:
    """Mutant ``number``: its row, its folder below ``home``, and the task that is asked for."""
    random = Random(f"{seed}/{number}")
    folder = work / "mutant"
    if random.random() < BUNDLES:
        source = mutations.make_bundle(STATE)
        shutil.copytree(source, folder)
        change = mutations.mutate_bundle(folder, random)
        return {"number": number, "input": "bundle", "road": "verify", "change": change}, folder, ""
    base = random.choice(mutations.BASES)
    shutil.copytree(mutations.make_base(STATE, base), folder)
    road = "onnx" if random.random() < WHOLE else "fold"
    task = random.choice((*mutations.TASKS, mutations.TASKS[1]))
    change = mutations.mutate(folder, random)
    return {"number": number, "input": base, "road": road, "change": change}, folder, task


def run(number: int, seed: int) -> dict[str, Any]:
    """The row of one mutant, made and tried in this process."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        root = Path(name)
        row, folder, task = make(number, seed, root)
        out = root / "place"
        out.mkdir()
        begin, start = os.times(), time.monotonic()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                if row["road"] == "verify":
                    end, message = mutations.attempt_bundle(folder)
                else:
                    end, message = mutations.attempt(
                        folder, task, "onnx" if row["road"] == "onnx" else "diffusers", out
                    )
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            text = (str(error).strip() or "no message").splitlines()[0]
            end, message = ELSE, f"{type(error).__name__}: {text}"
        used = sum(os.times()[:4]) - sum(begin[:4])
        if used > LIMIT and end != ELSE:
            end, message = ELSE, f"{used:.0f} s of processor time, then: {end}: {message}"
        seconds = round(time.monotonic() - start, 1)
        message = message.replace(str(root), "")[:300].encode("ascii", "backslashreplace").decode()
        change = row["change"].encode("ascii", "backslashreplace").decode()
        return row | {"change": change, "end": end, "said": message, "seconds": seconds}


def child(numbers: list[int], seed: int, rows: Path) -> None:
    """Run mutants one after the other; each is a line on standard output when it starts."""
    for number in numbers:
        print(number, flush=True)
        row = run(number, seed)
        draft = rows / f"{number}.part"
        draft.write_text(json.dumps(row), "utf-8")
        draft.rename(rows / f"{number}.json")


def watch(numbers: list[int], seed: int, rows: Path) -> None:
    """A child for these mutants; one that dies or hangs becomes a row, and the rest go on."""
    left = list(numbers)
    while left:
        command = [
            sys.executable,
            __file__,
            "--seed",
            str(seed),
            "--child",
            ",".join(map(str, left)),
        ]
        log = STATE / "child.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=stream, start_new_session=True
            )
            done, start = len(left), time.monotonic()
            while process.poll() is None:
                time.sleep(0.2)
                now = sum(1 for n in left if not (rows / f"{n}.json").is_file())
                done, start = (now, time.monotonic()) if now != done else (done, start)
                if time.monotonic() - start > PATIENCE:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        left = [n for n in left if not (rows / f"{n}.json").is_file()]
        if left:
            code = process.returncode
            last = log.read_text("utf-8", "replace").strip().splitlines()[-1:]
            row = {"number": left[0], "input": "?", "road": "?", "change": "?", "end": ELSE}
            message = f"the process ended with {code}: {''.join(last)[:200]}"
            (rows / f"{left[0]}.json").write_text(json.dumps(row | {"said": message, "seconds": 0}))
            left = left[1:]


def page(rows: list[dict[str, Any]], seed: int) -> str:
    """The counts as Markdown."""
    ends = Counter(row["end"] for row in rows)
    good = (mutations.CORRECT, mutations.VERIFIED, ELSE)
    errors = {name: count for name, count in ends.most_common() if name not in good}
    exports = [row for row in rows if row["end"] == mutations.CORRECT]
    whole = sum(1 for row in exports if row["road"] == "onnx")
    lines = [
        "# Bad input: mutated checkpoints and bundles",
        "",
        f"Made by `make mutations` from `mutations.json`: {len(rows):,} mutants of seed {seed}. "
        "Each is a valid tiny SD or SDXL checkpoint (one file or shards), or a valid bundle, with "
        "one to three random changes: config keys, JSON bytes, safetensors headers and data, the "
        "index of shards, links, manifests, goldens, models. A checkpoint goes through `inspect` "
        "and an export: to ONNX with its proof, or the fold alone, opened by diffusers again. A "
        "bundle goes through `inspect` and `verify`. After an error nothing may be left on disk.",
        "",
        "| end | mutants |",
        "|---|---|",
        *(f"| `{name}` | {count} |" for name, count in errors.items()),
        f"| **errors of our tree** | **{sum(errors.values())}** |",
        f"| **correct exports** ({whole} to ONNX with proof, {len(exports) - whole} folded) "
        f"| **{len(exports)}** |",
        f"| **bundles that verify** | **{ends[mutations.VERIFIED]}** |",
        f"| **anything else** | **{ends[ELSE]}** |",
    ]
    odd = [row for row in rows if row["end"] == ELSE]
    if odd:
        lines += ["", "| mutant | input | road | change | end |", "|---|---|---|---|---|"]
        lines += [
            f"| {r['number']} | {r['input']} | {r['road']} | `{r['change']}` | `{r['said']}` |"
            for r in odd
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is not done yet, then write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--fresh", action="store_true", help="forget the rows of this seed")
    parser.add_argument("--again", action="store_true", help="forget what ended as anything else")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    rows = STATE / f"rows-{args.seed}"
    if args.child:
        child([int(n) for n in args.child.split(",")], args.seed, rows)
        return
    if args.fresh:
        shutil.rmtree(rows, ignore_errors=True)
    rows.mkdir(parents=True, exist_ok=True)
    mutations.make_bundle(STATE)
    for path in rows.glob("*.json"):
        if args.again and json.loads(path.read_text("utf-8"))["end"] == ELSE:
            path.unlink()
    todo = [n for n in range(args.count) if not (rows / f"{n}.json").is_file()]
    for begin in range(0, len(todo), CHUNK):
        watch(todo[begin : begin + CHUNK], args.seed, rows)
        print(f"{min(begin + CHUNK, len(todo))} of {len(todo)}", flush=True)
    results = [json.loads((rows / f"{n}.json").read_text("utf-8")) for n in range(args.count)]
    ends = Counter(row["end"] for row in results)
    args.out.mkdir(parents=True, exist_ok=True)
    data = {"seed": args.seed, "count": args.count, "ends": dict(ends), "rows": results}
    (args.out / "mutations.json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    (args.out / "mutations.md").write_text(page(results, args.seed), "utf-8")
    print(dict(ends))
    raise SystemExit(1 if ends[ELSE] else 0)


if __name__ == "__main__":
    main()
