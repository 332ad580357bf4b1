"""``xcrun`` with devicectl: its commands, JSON and errors, of Xcode 16."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import phone

NOISE = "Failed to load provisioning paramter list due to error: No provider was found.\n"
LOST = (
    "ERROR: The device disconnected immediately after connecting. "
    "(com.apple.dt.CoreDeviceError error 4000 (0xFA0))\n"
)
TRANSFER = (
    "ERROR: The file transfer failed. (com.apple.dt.CoreDeviceError error 7000 (0x1B58))\n"
    + "-" * 80
    + "\n"
)
FULL = TRANSFER + (
    "ERROR: You can’t save the file because the volume is out of space. "
    "(NSCocoaErrorDomain error 640 (0x280))\n"
)
ABSENT = TRANSFER + (
    "ERROR: The file couldn’t be opened because it doesn’t exist. "
    "(NSCocoaErrorDomain error 260 (0x104))\n"
)


def option(words, name):
    return words[words.index(name) + 1]


def document(words, **values):
    """The file of --json-output."""
    target = option(words, "--json-output")
    outcome = "failed" if "error" in values else "success"
    info = {"arguments": ["devicectl", *words], "jsonVersion": 2, "outcome": outcome}
    Path(target).write_text(json.dumps({"info": {**info, "version": "477.39"}, **values}))


def fail(words, text):
    """An error, on stderr and in the JSON."""
    sys.stderr.write(NOISE + text)
    first = text.strip().splitlines()[0].removeprefix("ERROR: ")
    described = {"NSLocalizedDescription": {"string": first.rpartition(" (")[0]}}
    error = {"code": 1, "domain": "com.apple.dt.CoreDeviceError", "userInfo": described}
    document(words, error=error)
    sys.exit(1)


def listed(device):
    return {
        "capabilities": [],
        "connectionProperties": {
            "authenticationType": "manualPairing",
            "pairingState": device["pairing"],
            "transportType": "wired",
            "tunnelState": device["tunnel"],
        },
        "deviceProperties": {
            "bootState": "booted",
            "developerModeStatus": device["developer_mode"],
            "name": device["name"],
            "osBuildUpdate": device["build"],
            "osVersionNumber": device["os"],
        },
        "hardwareProperties": {
            "deviceType": "iPhone",
            "marketingName": "iPhone 14 Pro",
            "platform": device.get("platform", "iOS"),
            "productType": device["model"],
            "reality": "physical",
            "udid": device["udid"],
        },
        "identifier": "6986451F-A2FF-48DE-A70E-45E06E1F1446",
        "visibilityClass": "default",
    }


def launch(words):
    """``device process launch --console``: the app's streams, then how it ended."""
    variables = json.loads(option(words, "--environment-variables"))
    pid_file = phone.ROOT / "pid"
    process = phone.start(variables, stdout=subprocess.PIPE, text=True)
    pid_file.write_text(str(process.pid))
    print("Launched application with", words[-1], "bundle identifier.", flush=True)
    print("Waiting for the application to terminate…", flush=True)
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
    code = process.wait()
    if code < 0:
        print(f"App terminated due to signal {-code}.", flush=True)
        document(words, result={"process": {"processIdentifier": process.pid}})
        sys.exit(1)
    document(words, result={"process": {"processIdentifier": process.pid}})


def main(words):
    if words == ["--find", "devicectl"]:
        print("/Applications/Xcode.app/Contents/Developer/usr/bin/devicectl")
        return
    assert words[0] == "devicectl", words
    words = words[1:]
    place = words.index("--json-output")  # each subcommand takes it; devicectl itself does not
    assert place > 0, words
    assert not any(word.startswith("-") for word in words[:place]), words
    command = words[:place] + words[place + 2 :]
    kind = {"list": "list", "info": "apps", "to": "push", "from": "pull"}.get(
        command[2 if command[1] == "copy" else 0 if command[0] == "list" else 1], command[-1]
    )
    if command[1] == "process":
        kind = command[2]
    lost = phone.gone(phone.log(kind, command), kind)
    text = phone.error(kind, "devicectl")
    if text is not None:
        fail(words, text)
    if kind == "list":
        document(words, result={"devices": [] if lost else [*map(listed, phone.devices())]})
        return
    if lost:
        fail(words, LOST)
    if kind == "apps":
        document(words, result={"apps": [{"bundleIdentifier": name} for name in phone.apps()]})
    elif kind == "push":
        if not phone.copy_to(option(command, "--source"), option(command, "--destination")):
            fail(words, FULL)
        document(words, result={"files": []})
    elif kind == "pull":
        if not phone.copy_from(option(command, "--source"), option(command, "--destination")):
            fail(words, ABSENT)
        document(words, result={"files": []})
    elif kind == "launch":
        launch(words)
    elif kind == "terminate":
        os.kill(int(option(command, "--pid")), signal.SIGKILL)
        document(words, result={"signal": {"name": "SIGKILL", "value": 9}})


if __name__ == "__main__":
    main(sys.argv[1:])
