"""What a report may set side by side: measurements of one record, made in one way.

Records of different devices are never ranked together; neither are emulated measurements with real
ones, WASM with WebGPU, nor kernels of glibc on a phone with those of an app.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from mtu_export.bench.record import (
    IMAGE,
    Comparison,
    DeviceRecord,
    Fleet,
    Kind,
    Measurement,
    Peak,
    Run,
)

KINDS: dict[Kind, str] = {
    "bundle": "bundle",
    "dense": "single-task",
    "unfolded": "unfolded",
    "plain": "plain export",
    "single": "own bundle",
}
"""What reports call each kind of measurement."""
_TARGETS = {"onnx": "ONNX", "executorch": "ExecuTorch", "coreml": "Core ML"}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Measurements that may be compared with each other."""

    file: str
    run: Run
    provider: str | None
    emulated: bool
    alone: bool = True
    """Whether no other group has its device and way of running."""
    measurements: Sequence[Measurement]
    primary: bool = True
    """Whether what the record says of no single measurement belongs to it."""

    @property
    def title(self) -> str:
        """Device and way of running, in words."""
        device = self.run.device
        ways = {"host": "host", "adb": "phone over adb", "ios": "iPhone app", "web": "browser"}
        words = [ways[device.kind]]
        if self.provider:
            words.append({"wasm": "WASM", "webgpu": "WebGPU"}.get(self.provider, self.provider))
        if device.kind == "adb" and device.libc:
            is_app = device.libc == "bionic"
            words.append("in an app" if is_app else f"{device.libc} (not the kernels of an app)")
        title = f"{device.model} ({', '.join(words)})"
        return title if self.alone else f"{title}: {PurePath(self.file).stem}"

    @property
    def measured(self) -> list[Measurement]:
        """Those with numbers."""
        return [m for m in self.measurements if m.status == "measured"]

    @property
    def comparisons(self) -> Sequence[Comparison]:
        """Of the record; in a browser those of this group's provider."""
        if self.provider is None:
            return self.run.comparisons if self.primary else ()
        return [c for c in self.run.comparisons if c.provider == self.provider]

    @property
    def fleets(self) -> Sequence[Fleet]:
        """Of the record."""
        return self.run.fleets if self.primary else ()

    @property
    def peaks(self) -> Sequence[Peak]:
        """Of the record."""
        return self.run.peaks if self.primary else ()

    @property
    def main_parts(self) -> list[Measurement]:
        """The measured part of most work of each bundle and task: the denoiser."""
        heaviest: dict[tuple[str, ...], Measurement] = {}
        for m in self.measured:
            if m.part == IMAGE or m.work is None:
                continue
            key = (m.kind, m.bundle.name, m.bundle.manifest_sha256, m.task, m.provider)
            best = heaviest.get(key)
            if best is None or best.work is None or m.work.flops_total > best.work.flops_total:
                heaviest[key] = m
        return list(heaviest.values())


def groups(runs: Iterable[tuple[str, Run]]) -> list[Group]:
    """Every record's groups, real ones first: hosts, phones, browsers, then what was emulated."""
    result = []
    for file, run in runs:
        web = run.device.kind == "web"
        keys: dict[tuple[bool, str | None], list[Measurement]] = {}
        for m in run.measurements:
            key = (m.emulated or run.device.emulated, m.provider if web else None)
            keys.setdefault(key, []).append(m)
        if not keys:
            keys[run.device.emulated, None] = []
        largest = max(keys, key=lambda key: sum(m.status == "measured" for m in keys[key]))
        result += [
            Group(
                file=file,
                run=run,
                provider=provider,
                emulated=emulated,
                measurements=measurements,
                primary=(emulated, provider) == largest,
            )
            for (emulated, provider), measurements in keys.items()
        ]
    order = ("host", "adb", "ios", "web")
    titles = Counter(group.title for group in result)
    result = [replace(group, alone=titles[group.title] == 1) for group in result]
    return sorted(result, key=lambda g: (g.emulated, order.index(g.run.device.kind)))


def device_facts(device: DeviceRecord) -> list[tuple[str, str]]:
    """Names and values of what a record says of its device."""
    memory = f"{device.memory / 1e9:.1f} GB" if device.memory else None
    page = f"{device.page_size:,} bytes" if device.page_size else None
    context = {True: "yes", False: "no", None: None}[device.secure_context]
    facts = [
        ("device", device.model),
        ("processor", device.soc),
        ("system", device.os),
        ("architecture", device.arch),
        ("cores", str(device.cores) if device.cores else None),
        ("memory", memory),
        ("page size", page),
        ("governor", device.governor),
        ("instructions", ", ".join(device.instructions) or None),
        ("C library", device.libc),
        ("browser", device.browser),
        ("secure context", context),
    ]
    return [(name, value) for name, value in facts if value]


def model_of(m: Measurement | Comparison | Fleet) -> str:
    """Target and scheme, as in "ONNX int8"."""
    own = m.bundle if isinstance(m, Measurement) else m
    return f"{_TARGETS.get(own.target, own.target)} {own.scheme}"  # type: ignore[union-attr]
