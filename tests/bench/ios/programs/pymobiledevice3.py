"""``pymobiledevice3``: the commands that the driver uses, of version 11."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import phone

STAMP = "2026-11-30 12:00:00 runner pymobiledevice3.__main__[1] ERROR "
LOST = STAMP + "Connection was terminated abruptly.\n"
FULL = STAMP + "Failed to write (AFC status NO_SPACE_LEFT).\n"
ABSENT = STAMP + "No such file on the device (AFC status OBJECT_NOT_FOUND).\n"


def fail(text):
    sys.stderr.write(text)
    sys.exit(1)


def show(value):
    print(json.dumps(value, sort_keys=True, indent=4))


def plain(words):
    """The arguments that are no options nor their values."""
    rest, index = [], 0
    while index < len(words):
        if words[index] in ("--udid", "--type"):
            index += 2
            continue
        if not words[index].startswith("--"):
            rest.append(words[index])
        index += 1
    return rest


def alive(pid):
    path = Path(f"/proc/{pid}/stat")
    try:
        return path.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main(words):
    assert words[0] == "--no-color", words
    words = words[1:]
    kind = {
        "usbmux list": "list",
        "apps list": "apps",
        "apps push": "push",
        "apps pull": "pull",
        "developer dvt": words[2] if len(words) > 2 else "",
    }[" ".join(words[:2])]
    lost = phone.gone(phone.log(kind, words), kind)
    text = phone.error(kind, "pymobiledevice3")
    if text is not None:
        fail(STAMP + text + "\n")
    if kind == "list":
        show([] if lost else [listed(each) for each in phone.devices()])
        return
    if lost:
        fail(LOST)
    rest = plain(words[2:])
    if kind == "apps":
        show({name: {"CFBundleIdentifier": name} for name in phone.apps()})
    elif kind == "push":
        try:
            whole = phone.copy_to(rest[1], rest[2])
        except FileNotFoundError:
            fail(ABSENT)
        if not whole:
            fail(FULL)
    elif kind == "pull":
        if not phone.copy_from(rest[1], rest[2]):
            Path(rest[2]).touch()  # the program opens the local file first
            fail(ABSENT)
    elif kind == "launch":
        variables = [word[6:] for word in words if word.startswith("--env=")]
        environment = dict(text.split("=", 1) for text in variables)
        null = subprocess.DEVNULL
        started = phone.start(environment, stdin=null, stdout=null, stderr=null)
        print(f"Process launched with pid {started.pid}")
    elif kind == "is-running-pid":
        show(alive(int(rest[1])))
    elif kind == "kill":
        os.kill(int(rest[1]), signal.SIGKILL)


def listed(device):
    return {
        "BuildVersion": device["build"],
        "ConnectionType": "USB",
        "DeviceClass": device.get("class", "iPhone"),
        "DeviceName": device["name"],
        "Identifier": device["udid"],
        "ProductType": device["model"],
        "ProductVersion": device["os"],
        "UniqueDeviceID": device["udid"],
    }


if __name__ == "__main__":
    main(sys.argv[1:])
