"""`bench --device adb --app` on a loopback phone whose ``am`` runs a scripted bench."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mtu_export.bench import api
from mtu_export.bench.devices import DeviceLost
from mtu_export.bench.devices.adb import AppDevice, app, connect_app, files
from mtu_export.bench.job import Job
from mtu_export.spec import DeviceError, PlanError
from mtu_export.spec.options import BenchOptions
from tests.bench.loopback.daemon import Cut
from tests.bench.loopback.phone import Phone, tree
from tests.bench.loopback.test_adb_faults import wait_until
from tests.phones import jar
from tests.support import tools

RUNNER = Path(__file__).with_name("runner") / "mtu-bench"
BUNDLE = Path(__file__).parents[3] / "runtime" / "testdata" / "edit-onnx-int8"
MEDIA = f"sdcard/Android/media/{app.PACKAGE}/bench"
Open = Callable[[], AppDevice]
MakeJob = Callable[..., Job]
Saw = Callable[[object], None]


def install(phone: Phone, command: str = str(RUNNER)) -> None:
    phone.write(f"packages/{app.PACKAGE}", "")
    phone.write(f"dumpsys/package/{app.PACKAGE}", "    versionName=0.1.0\n")
    phone.write("app", command)


def script(phone: Phone, text: str) -> None:
    """Another program in the app's place; ``$1`` is the job, ``$3`` its result."""
    phone.write("bin/app.sh", text)
    install(phone, f"sh {phone.root}/bin/app.sh")


@pytest.fixture
def installed(phone: Phone, monkeypatch: pytest.MonkeyPatch) -> Phone:
    monkeypatch.setattr(app, "_POLL", 0.05)
    monkeypatch.setattr(app, "_TELL", 0.2)
    install(phone)
    return phone


@pytest.fixture
def open_app(lines: list[str]) -> Open:
    def open_() -> AppDevice:
        device = connect_app(progress=lines.append)
        device.return_limit = 5.0
        device.grace = 1.0
        return device

    return open_


def left(phone: Phone) -> list[str]:
    """What lies on the phone, and what the app has written."""
    return [*phone.left(), *tree(phone.root / MEDIA)]


def app_runs(phone: Phone) -> bool:
    pid = int((phone.root / "app.pid").read_text())
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_a_job_runs_in_the_app_and_nothing_is_left(
    installed: Phone, open_app: Open, make_job: MakeJob, lines: list[str]
) -> None:
    with open_app() as device:
        assert device.name == f"adb:{installed.serial} {app.PACKAGE} 0.1.0"
        assert device.describe().libc == "bionic"
        for _ in range(2):
            result = device.run(make_job())
            assert (result.status, result.reason) == ("measured", None)
            assert result.samples_s == (0.125, 0.125)
        assert not app_runs(installed)
    assert lines[:3] == ["loaded p 0.50 s", "sample 1 of 2 0.12 s", "sample 2 of 2 0.12 s"]
    assert left(installed) == []


def test_the_app_may_read_what_is_pushed_and_gets_no_runner(
    installed: Phone, open_app: Open, make_job: MakeJob
) -> None:
    with open_app() as device:
        device.run(make_job())
        (folder,) = (installed.folder / "mtu-export").iterdir()
        pushed = [folder, *folder.rglob("*")]
        assert all(path.stat().st_mode & 0o5 == 0o5 for path in pushed if path.is_dir())
        assert all(path.stat().st_mode & 0o4 for path in pushed if path.is_file())
        assert not any("runner" in path.name for path in pushed)


def test_only_this_app_is_started_and_ended(
    installed: Phone, open_app: Open, make_job: MakeJob
) -> None:
    with open_app() as device:
        device.run(make_job())
    commands = installed.commands()
    changes = re.findall(r"\b(?:am|pm|logcat|settings|setprop|svc|input)\b[^;\n&}]*", commands)
    start = f"am start -W -S -n {app.PACKAGE}/.BenchActivity --es job "
    for change in changes:
        assert change.startswith(
            (start, f"am force-stop {app.PACKAGE}", f"pm path {app.PACKAGE}")
        ), change
    removed = re.findall(r"\brm -r?f ([^;\n]*)", commands)
    assert all(
        path.startswith(("/data/local/tmp/mtu-export/", app.OUTPUT + "/")) for path in removed
    )


def test_the_app_is_not_installed(phone: Phone, open_app: Open, saw: Saw) -> None:
    """With --app: the app is not installed"""
    with pytest.raises(DeviceError) as error:
        open_app()
    saw(error.value)
    assert str(error.value).startswith(f"{phone.serial} has no app {app.PACKAGE}: build ")


def test_the_app_goes_between_two_jobs(
    installed: Phone, open_app: Open, make_job: MakeJob, saw: Saw
) -> None:
    """With --app: the app is uninstalled in the middle of a run"""
    with open_app() as device:
        assert device.run(make_job()).status == "measured"
        (installed.root / "packages" / app.PACKAGE).unlink()
        reason = device.run(make_job()).reason
    saw(reason)
    assert (reason or "").startswith("the app does not start: Error: Activity class {")
    assert left(installed) == []


FAULTS = {
    "killed": ("The app is killed", "the app left no result: it was killed, for instance for w"),
    "nothing": ("The app leaves no result", "the app left no result: it was killed, for instance"),
    "garbage": ("The app's result is garbage", "the runner's result cannot be read: its JSON"),
    "large": ("The app's result is too large", "the runner's result: more than 16,000,000 by"),
    "other job": ("The app's result is of another job", "the runner's result is of another job"),
    "hang": ("The app hangs", "the app hangs: nothing for 2 s; it was ended"),
    "talk": ("The app writes without end", "the app writes without end: more than 1,000,000"),
}


@pytest.mark.parametrize(
    ("test", "fault", "says"),
    [(key, f"With --app: {fault}", says) for key, (fault, says) in FAULTS.items()],
    ids=list(FAULTS),
)
def test_an_app_that_fails(
    installed: Phone,
    open_app: Open,
    make_job: MakeJob,
    saw: Saw,
    monkeypatch: pytest.MonkeyPatch,
    test: str,
    fault: str,
    says: str,
) -> None:
    """The app fails"""
    monkeypatch.setattr(app, "_LONGEST_OUTPUT", 1_000_000)
    with open_app() as device:
        result = device.run(make_job(test, deadline_s=1.0))
        saw(result.reason)
        assert result.status == "failed"
        assert (result.reason or "").startswith(says)
        wait_until(lambda: not app_runs(installed))
        assert device.run(make_job()).status == "measured"
    assert left(installed) == []


def test_a_result_that_is_half_written_is_none(
    installed: Phone, open_app: Open, make_job: MakeJob, saw: Saw
) -> None:
    """With --app: the app dies while it writes its result"""
    script(installed, 'printf \'{"format": 1, "status": "mea\' > "$3.part"; kill -9 $$\n')
    with open_app() as device:
        result = device.run(make_job())
    saw(result.reason)
    assert (result.reason or "").startswith("the app left no result: it was killed, for instance")
    assert left(installed) == []


OLD_FORM = """ACTIVITY MANAGER LRU PROCESSES (dumpsys activity exit-info)
  package: io.mtuexport.sample
    Historical Process Exit for userId=0
        ApplicationExitInfo #0:
          timestamp=1/12/26 3:24
          pid=PID
          realUid=10165
          process=io.mtuexport.sample
          reason=REASON
          status=STATUS
          description=pid=77 reason=3
        ApplicationExitInfo #1:
          pid=77
          reason=10 (USER REQUESTED)
          status=0
"""
"""As Android 11 writes it."""
NEW_FORM = """ACTIVITY MANAGER PROCESS EXIT INFO (dumpsys activity exit-info)
  package: io.mtuexport.sample
    Historical Process Exit for uid=10165
        ApplicationExitInfo #0:
          timestamp=2026-12-01 03:24:01.120 pid=77 realUid=10165 packageUid=10165 user=0
          process=io.mtuexport.sample reason=10 (USER REQUESTED) subreason=21 (FORCE STOP) status=0
        ApplicationExitInfo #1:
          timestamp=2026-12-01 03:24:00.002 pid=PID realUid=10165 packageUid=10165 user=0
          process=io.mtuexport.sample reason=REASON subreason=0 (UNKNOWN) status=STATUS
          importance=100 pss=1.1GB rss=1.2GB description=null state=empty trace=null
"""
EXITS = {
    "for memory": (OLD_FORM, "3 (LOW_MEMORY)", 0, "killed, most likely out of memory (4,425 MB"),
    "signal 9": (NEW_FORM, "2 (SIGNALED)", 9, "killed, most likely out of memory (4,425 MB were"),
    "signal 15": (
        NEW_FORM,
        "2 (SIGNALED)",
        15,
        "the app left no result: it was ended by signal 15",
    ),
    "an exception": (
        OLD_FORM,
        "4 (APP CRASH(EXCEPTION))",
        0,
        "the app left no result: it crashed: ",
    ),
    "native code": (
        NEW_FORM,
        "5 (APP CRASH(NATIVE))",
        11,
        "the app left no result: it crashed in native code (signal 11)",
    ),
    "another reason": (NEW_FORM, "99 (NEW)", 0, "the app left no result: the system does not tell"),
}


@pytest.mark.parametrize(
    ("form", "reason", "status", "says", "fault"),
    [
        (*values, f"With --app: Android says that the app ended by: {key}")
        for key, values in EXITS.items()
    ],
    ids=list(EXITS),
)
def test_an_app_that_ends_without_a_result_by_what_android_says(
    installed: Phone,
    open_app: Open,
    make_job: MakeJob,
    saw: Saw,
    form: str,
    reason: str,
    status: int,
    says: str,
    fault: str,
) -> None:
    """Android says why the app ended"""
    installed.write("exit", form.replace("REASON", reason).replace("STATUS", str(status)))
    note = 'sed "s/=PID/=$$/" "$ROOT/exit" > "$ROOT/dumpsys/activity"'
    script(installed, f"{note}; kill -9 $$\n")
    with open_app() as device:
        result = device.run(make_job())
    saw(result.reason)
    assert result.status == "failed"
    assert (result.reason or "").startswith(says)
    assert left(installed) == []


def test_a_slow_app_that_tells_of_itself_is_waited_for(
    installed: Phone, open_app: Open, make_job: MakeJob
) -> None:
    """Each event begins the time anew: four of 1 s fit where 2 s of silence do not."""
    events = "".join(f'echo \'{{"event":"sample","number":{n}}}\'; sleep 1; ' for n in range(4))
    script(installed, f'{events}exec {RUNNER} "$@"\n')
    with open_app() as device:
        assert device.run(make_job(deadline_s=1.0)).status == "measured"


def test_a_phone_that_goes_away(
    installed: Phone,
    open_app: Open,
    make_job: MakeJob,
    saw: Saw,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With --app: the phone is unplugged while the app works"""
    monkeypatch.setattr(files, "RETURN", 0.5)
    script(installed, "sleep 600\n")
    with open_app() as device:
        device.return_limit = 0.5
        installed.settings.cuts.append(Cut(service=r"shell:pidof", after=20, gone=True))
        with pytest.raises(DeviceLost) as error:
            device.run(make_job())
    saw(error.value)
    assert f"{installed.serial} went away in the middle of waiting for the app" in str(error.value)
    wait_until(lambda: left(installed) == [])  # the guard on the phone has removed it
    wait_until(lambda: not app_runs(installed))


@pytest.mark.slow
def test_a_bundle_is_measured_by_the_runner_in_java(installed: Phone) -> None:
    """The whole suite; the app is `mtu-cli.jar job`, whose runner the sample has too."""
    install(installed, f"{tools.require('java')} -jar {jar.jar()} job")
    lines: list[str] = []
    run = api.bench(
        [BUNDLE],
        device=f"adb:{installed.serial}",
        app=True,
        part=["unet", "image"],
        rounds=2,
        samples=2,
        detail=lines.append,
    )
    assert run.device.libc == "bionic"
    unet, image = run.measurements
    for measurement in (unet, image):
        assert (measurement.status, measurement.reason) == ("measured", None)
        assert [len(each.samples_s) for each in measurement.rounds] == [2, 2]
        assert measurement.runner is not None
        assert measurement.runner.name == "mtu-cli"
        assert measurement.checks
        assert all(check.passed for check in measurement.checks)
    assert any(line.startswith("loaded unet") for line in lines)
    assert left(installed) == []


@pytest.mark.parametrize(
    ("device", "cpus", "says"),
    [
        ("host", "all", "--app belongs to --device adb, not host"),
        ("web:adb", "all", "--app belongs to --device adb, not web:adb"),
        ("adb", "big", "--cpus binds the runner; an app has all cores"),
    ],
)
def test_flags_that_do_not_fit(device: str, cpus: str, says: str) -> None:
    with pytest.raises(PlanError, match=re.escape(says)):
        BenchOptions(app=True, device=device, cpus=cpus)
