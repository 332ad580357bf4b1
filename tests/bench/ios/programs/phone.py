"""The phone behind both fake programs: a folder, and what was asked of it.

``settings.json`` says how it behaves: ``devices`` (their differences from ``DEVICE``), ``apps``,
``errors`` (kind of command -> texts by program), ``gone_at`` (the kind of command at which the
phone is unplugged for good), ``gone_after`` and ``back_after`` (commands until
the phone is unplugged, and until it is back), ``slow`` (seconds of each copy), ``app`` (faults of
the app, for ``app.py``), ``program`` (another app).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(os.environ["FAKE_PHONE"])
APP = Path(__file__).with_name("app.py")
DEVICE = {
    "udid": "00008120-0014485601E3C01E",
    "name": "Ada's iPhone",
    "model": "iPhone15,2",
    "os": "18.4.1",
    "build": "22E252",
    "pairing": "paired",
    "tunnel": "connected",
    "developer_mode": "enabled",
}
IDENTIFIER = "org.example.mtuexport.bench"


def settings():
    path = ROOT / "settings.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def devices():
    return [{**DEVICE, **each} for each in settings().get("devices", [{}])]


def apps():
    return settings().get("apps", [IDENTIFIER])


def log(kind, words):
    """Note a command; returns how many there were."""
    with (ROOT / "log.txt").open("a") as file:
        file.write(f"{kind} {json.dumps(words)}\n")
    return len((ROOT / "log.txt").read_text().splitlines())


def gone(count, kind):
    """Whether the phone is unplugged at this command."""
    mark = ROOT / "gone"
    if settings().get("gone_at") == kind:
        mark.touch()
    if mark.exists():
        return True
    after, back = settings().get("gone_after"), settings().get("back_after")
    return after is not None and count > after and (back is None or count <= back)


def error(kind, program):
    """The text that this command fails with, or None."""
    texts = settings().get("errors", {}).get(kind)
    return None if texts is None else texts.get(program)


def container(path):
    """A path of the app's container."""
    return ROOT / "container" / path.lstrip("/")


def copy_to(source, target):
    """True where the copy fits; False where the phone is full, and half of the file is there."""
    place = container(target)
    if not place.parent.is_dir():
        raise FileNotFoundError(place)
    data = Path(source).read_bytes()
    time.sleep(settings().get("slow", 0))
    if len(data) > settings().get("room", 1 << 60):
        place.write_bytes(data[: len(data) // 2])
        return False
    if target.endswith(settings().get("damages", "\n")):
        data = data[:-1] + bytes([data[-1] ^ 1])
    place.write_bytes(data)
    return True


def copy_from(source, target):
    """True where the file is there; ``half`` names files that arrive in part, so many times."""
    place = container(source)
    if not place.is_file():
        return False
    data = place.read_bytes()
    half = settings().get("half", {})
    for name, times in half.items():
        mark = ROOT / f"half-{name}"
        count = len(mark.read_bytes()) if mark.is_file() else 0
        if source.endswith(name) and count < times:
            mark.write_bytes(b"x" * (count + 1))
            data = data[: len(data) // 2]
    Path(target).write_bytes(data)
    return True


def start(environment, **streams):
    """The app's process: `app.py`, or the `program` of the settings with the app's folder."""
    program = settings().get("program")
    documents = str(ROOT / "container" / "Documents")
    return subprocess.Popen(
        [*program, documents] if program else [sys.executable, str(APP)],
        env={"PATH": os.environ["PATH"], "FAKE_PHONE": str(ROOT), **environment},
        **streams,
    )
