"""The bench app of the fakes: answers requests as ``runtime/ios/README.md`` says.

Of a job it loads nothing: its samples are numbers by rule. ``app`` of the phone's settings names
its faults.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

ROOT = Path(os.environ["FAKE_PHONE"])
FOLDER = ROOT / "container" / "Documents" / "bench"
SETTINGS = ROOT / "settings.json"
FAULTS = json.loads(SETTINGS.read_text()).get("app", {}) if SETTINGS.is_file() else {}


def write(path, value):
    part = path.with_name(path.name + ".part")
    part.write_text(value if isinstance(value, str) else json.dumps(value))
    part.replace(path)


def event(**values):
    line = json.dumps(values, separators=(",", ":"))
    print(line, flush=True)
    with (FOLDER / "progress.jsonl").open("a") as file:
        file.write(line + "\n")


def result(job, samples, status="measured", reason=None):
    parts = list(job["parts"])
    return {
        "format": 1,
        "status": status,
        "reason": reason,
        "runner": {"name": "MTUBench", "version": "1.0", "language": "Swift"},
        "engine": {"name": "Core ML", "version": "18.4.1"},
        "load_s": {FAULTS.get("part", part): 0.5 for part in parts},
        "load_again_s": dict.fromkeys(parts, 0.1) if job["load_again"] else {},
        "first_s": 0.25,
        "samples_s": [0.01 * (n + 1) for n in range(samples)],
        "calls": {part: {"count": samples, "seconds": [0.01] * samples} for part in parts},
        "psnr_db": dict.fromkeys(job["expected"], 61.5),
        "machine": {"arch": "arm64", "cores": 6, "page_size": 16384},
    }


def run(folder):
    if FAULTS.get("result") == "none":
        return
    job = json.loads((folder / "job.json").read_text())
    for name, part in job["parts"].items():
        assert (folder / part["path"]).exists(), part["path"]
        event(event="loaded", part=name, seconds=0.5)
    for number in range(1, job["samples"] + 1):
        ending = result(job, number, "failed", "the app ended before the job did")
        write(folder / "result.json", ending)
        event(event="sample", number=number, of=job["samples"], seconds=0.01, warmup=False)
        misbehave("run")
    write(folder / "result.json", FAULTS.get("result") or result(job, job["samples"]))


def misbehave(verb):
    """Hang, crash or be killed in the middle of a request."""
    if FAULTS.get("verb") != verb:
        return
    if FAULTS.get("how") == "hang":
        time.sleep(3600)
    if isinstance(FAULTS.get("how"), int):
        os.kill(os.getpid(), FAULTS["how"])


def main():
    request = json.loads(os.environ["MTU_BENCH"])
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "answer.json").unlink(missing_ok=True)
    (FOLDER / "progress.jsonl").unlink(missing_ok=True)
    event(event="started", pid=os.getpid())
    verb, folder, wrong = request["verb"], FOLDER / request["session"], []
    if verb != "run":
        misbehave(verb)
    if request["cool_s"] and FAULTS.get("hot"):
        event(event="hot", state="serious")
    if verb == "prepare":
        folder.mkdir(exist_ok=True)
        for name in request["folders"]:
            (folder / name).mkdir(parents=True, exist_ok=True)
    elif verb == "verify":
        for name, expected in request["files"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
                wrong.append(name)
    elif verb == "run":
        run(folder)
    elif verb == "remove":
        shutil.rmtree(folder, ignore_errors=True)
    refusal = FAULTS.get("refuses", {}).get(verb)
    answer = {
        "format": 1,
        "token": FAULTS.get("token", request["token"]),
        "status": "failed" if refusal else "done",
        "reason": refusal,
        "app": {"version": "1.0", "build": "1"},
        "device": {
            "model": "iPhone15,2",
            "os": "iOS 18.4.1 (22E252)",
            "arch": "arm64",
            "cores": 6,
            "memory": 6_000_000_000,
            "page_size": 16384,
        },
        "state": {
            "thermal_status": 3 if FAULTS.get("hot") else 0,
            "battery": 0.8,
            "charging": True,
            "free_memory": 3_200_000_000,
            "throttled": bool(request["cool_s"] and FAULTS.get("hot")),
        },
        "free_bytes": FAULTS.get("free", 20_000_000_000),
        "wrong": wrong,
    }
    if FAULTS.get("answer") != "none":
        write(FOLDER / "answer.json", FAULTS.get("answer") or answer)
    event(event="ended")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
