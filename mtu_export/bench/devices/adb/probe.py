"""What a phone is and how warm it is, from answers that are not trusted."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from mtu_export.bench.devices import Progress
from mtu_export.bench.devices.adb.client import Adb, printable
from mtu_export.bench.record import DeviceRecord, DeviceState
from mtu_export.spec import DeviceError

OLDEST = 26
"""Android 8."""
ARCHITECTURES = {"arm64-v8a": "aarch64", "x86_64": "x86_64"}
"""ABI -> architecture of the runner."""
INSTRUCTIONS = ("asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "sme", "avx2", "avx512_vnni")
COOL_LIMIT = 300.0
"""Seconds that a measurement waits for a phone to cool down."""
COOL_PAUSE = 10.0
"""Seconds of rest where a phone does not tell its heat."""
_COOL_POLL = 5.0
_NONE = 0  # android.os.PowerManager.THERMAL_STATUS_NONE
_CPU = "/sys/devices/system/cpu"
_PROPERTIES = (
    "ro.product.manufacturer",
    "ro.product.model",
    "ro.soc.manufacturer",
    "ro.soc.model",
    "ro.board.platform",
    "ro.build.version.release",
    "ro.build.version.sdk",
    "ro.build.id",
    "ro.product.cpu.abilist",
    "ro.kernel.qemu",
    "ro.boot.qemu",
    "ro.hardware",
)
_LOOK = (
    f'for k in {" ".join(_PROPERTIES)}; do echo "$k=$(getprop $k)"; done; '
    'echo "page=$(getconf PAGE_SIZE 2>/dev/null)"; '
    'echo "memory=$(grep MemTotal: /proc/meminfo)"; '
    f'echo "cores=$(cat {_CPU}/possible 2>/dev/null)"; '
    f'echo "governor=$(cat {_CPU}/cpu0/cpufreq/scaling_governor 2>/dev/null)"; '
    "echo @cpuinfo; cat /proc/cpuinfo"
)
_STATE = (
    "echo '@thermal'; dumpsys thermalservice 2>/dev/null; echo '@battery'; "
    "dumpsys battery 2>/dev/null; echo '@memory'; grep MemAvailable: /proc/meminfo; "
    f"echo '@clocks'; for c in {_CPU}/cpu[0-9]*; do "
    'echo "${c##*cpu} $(cat $c/cpufreq/scaling_cur_freq 2>/dev/null)"; done'
)


@dataclass(frozen=True, kw_only=True)
class Phone:
    """What decides whether and how a phone runs; ``arch`` is that of the runner."""

    arch: str
    record: DeviceRecord


def look(adb: Adb) -> Phone:
    """What a phone is. Raises ``DeviceError`` where no runner runs on it."""
    properties, _, processor = adb.look(_LOOK, what="asking what it is").partition("\n@cpuinfo\n")
    pairs = (line.partition("=") for line in properties.splitlines())
    values = {key: printable(value, 100) for key, mark, value in pairs if mark and key.strip()}
    sdk = _number(values.get("ro.build.version.sdk", ""), most=1000)
    release = values.get("ro.build.version.release") or "of unknown version"
    if sdk is None or sdk < OLDEST:
        level = "an unknown SDK level" if sdk is None else f"SDK level {sdk}"
        raise DeviceError(
            f"{adb.serial} has Android {release} ({level}); it needs Android 8 (SDK level 26)"
        )
    abis = [abi.strip() for abi in values.get("ro.product.cpu.abilist", "").split(",")]
    arch = next((ARCHITECTURES[abi] for abi in abis if abi in ARCHITECTURES), None)
    if arch is None:
        raise DeviceError(
            f"{adb.serial} has the ABIs {', '.join(filter(None, abis)) or 'none'}; "
            f"the runner needs {' or '.join(ARCHITECTURES)}"
        )
    build = values.get("ro.build.id")
    details = f"SDK {sdk}" + (f", {build}" if build else "")
    return Phone(
        arch=arch,
        record=DeviceRecord(
            kind="adb",
            model=_words(values, "ro.product.manufacturer", "ro.product.model") or "unknown",
            soc=_words(values, "ro.soc.manufacturer", "ro.soc.model")
            or values.get("ro.board.platform")
            or None,
            os=f"Android {release} ({details})",
            arch=arch,
            cores=_cores(values.get("cores", "")),
            memory=_kilobytes(values.get("memory", "")),
            page_size=_number(values.get("page", ""), most=1 << 20),
            governor=values.get("governor") or None,
            instructions=_instructions(processor),
            emulated=_is_emulated(values, processor),
        ),
    )


def _words(values: dict[str, str], *keys: str) -> str:
    words = [values[key] for key in keys if values.get(key)]
    if len(words) > 1 and words[1].lower().startswith(words[0].lower()):
        return words[1]
    return " ".join(words)


def _number(text: str, *, most: int) -> int | None:
    text = text.strip()
    if not re.fullmatch(r"[0-9]{1,15}", text):
        return None
    number = int(text)
    return number if 0 < number <= most else None


def _kilobytes(text: str) -> int | None:
    match = re.search(r"(?:^|\s)Mem\w+:\s+([0-9]{1,12}) kB", text)
    return int(match[1]) * 1024 if match else None


def _cores(text: str) -> int | None:
    """The count of a list of cores, as ``0-3,6``."""
    if not re.fullmatch(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", text):
        return None
    count = 0
    for piece in text.split(","):
        first, _, last = piece.partition("-")
        count += int(last or first) - int(first) + 1
    return count if count > 0 else None


def _instructions(text: str) -> tuple[str, ...]:
    """The instruction sets that every core has."""
    lines = re.findall(r"(?m)^(?:Features|flags)\s*:([ \w]*)$", text[:200_000])
    if not lines:
        return ()
    common = set.intersection(*(set(line.split()) for line in lines))
    return tuple(name for name in INSTRUCTIONS if name in common)


def _is_emulated(values: dict[str, str], text: str) -> bool:
    qemu = any(values.get(key, "") not in ("", "0") for key in ("ro.kernel.qemu", "ro.boot.qemu"))
    hardware = values.get("ro.hardware", "").lower() in ("goldfish", "ranchu", "cutf_cvm")
    return qemu or hardware or re.search(r"\bqemu\b", text, re.IGNORECASE) is not None


# -------------------------------------------------------------------------------------- heat


def state(adb: Adb) -> DeviceState:
    """Heat, battery, clocks and memory now; what does not read well is None."""
    sections = re.split(
        r"(?m)^@(thermal|battery|memory|clocks)\s*$", adb.look(_STATE, what="asking for its heat")
    )
    texts = dict(zip(sections[1::2], sections[2::2], strict=False))
    battery = texts.get("battery", "")
    return DeviceState(
        thermal_status=_thermal_status(texts.get("thermal", "")),
        temperature=_temperature(texts.get("thermal", ""), battery),
        battery=_level(battery),
        charging=_charging(battery),
        clocks=_clocks(texts.get("clocks", "")),
        free_memory=_kilobytes(texts.get("memory", "")),
    )


def free_memory(adb: Adb) -> int | None:
    """Bytes that the phone calls available."""
    return _kilobytes(adb.look("grep MemAvailable: /proc/meminfo", what="asking for its memory"))


def cool(
    adb: Adb,
    *,
    limit: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    progress: Progress,
) -> DeviceState:
    """The state of a phone that has cooled down, or ``throttled`` after ``limit`` seconds.

    One that does not tell its heat gets a short fixed pause.
    """
    began = clock()
    now = state(adb)
    if now.thermal_status is None:
        sleep(COOL_PAUSE)
        return state(adb)
    while now.thermal_status not in (None, _NONE):
        waited = clock() - began
        if waited >= limit:
            progress(f"{adb.serial} is still hot after {waited:.0f} s: measured all the same")
            return now.model_copy(update={"throttled": True})
        progress(f"{adb.serial} is hot (thermal status {now.thermal_status}): waiting")
        sleep(_COOL_POLL)
        now = state(adb)
    return now


def _thermal_status(text: str) -> int | None:
    match = re.search(r"(?m)^\s*Thermal Status: ([0-6])\s*$", text)
    return int(match[1]) if match else None


def _temperature(thermal: str, battery: str) -> float | None:
    """The hottest sensor, of those that are temperatures; otherwise the battery's."""
    _, current, recent = thermal.partition("Current temperatures from HAL:")
    pattern = r"Temperature\{mValue=(-?\d{1,4}(?:\.\d{1,9})?),"
    values = [float(value) for value in re.findall(pattern, recent if current else thermal)]
    match = re.search(r"(?m)^\s*temperature: (-?\d{1,4})\s*$", battery)
    if not values and match:
        values = [int(match[1]) / 10]
    plausible = [value for value in values if -40 < value < 130 and value != 0]
    return max(plausible, default=None)


def _level(text: str) -> float | None:
    level = re.search(r"(?m)^\s*level: (\d{1,6})\s*$", text)
    scale = re.search(r"(?m)^\s*scale: (\d{1,6})\s*$", text)
    whole = int(scale[1]) if scale else 100
    return int(level[1]) / whole if level and whole > 0 and int(level[1]) <= whole else None


def _charging(text: str) -> bool | None:
    powered = re.findall(r"(?m)^\s*(?:AC|USB|Wireless|Dock) powered: (true|false)\s*$", text)
    return "true" in powered if powered else None


def _clocks(text: str) -> tuple[int, ...] | None:
    """Of cores that tell theirs, in order; None where one does not."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines or not all(
        len(words) == 2 and all(re.fullmatch(r"\d{1,9}", word) for word in words) for words in lines
    ):
        return None
    return tuple(int(clock) for _, clock in sorted(lines, key=lambda words: int(words[0])))
