"""Check the stub of CoreML against machine-made bindings of Apple's headers.

    python runtime/ios/tools/coreml_stub.py

pyobjc's source distribution holds, for every class, method, property and constant of Apple's SDK,
its selector and the macOS that brought it. It is downloaded once, by its hash, to the cache of
mtu-export and never part of this repository. The check fails where a declaration of the stub
names a selector that Apple's headers have not, gives a constant another value, or carries another
availability: `@available(macOS X, iOS Y, *)` where Apple brought it after macOS 13, none else.

Selectors prove names and versions, not the signatures that Swift makes of them. Those that
MTUCoreML takes in another form than the selector's are the rows of OVERLAY, with Apple's pages.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGE, VERSION = "pyobjc-framework-CoreML", "12.2.2"
SHA256 = "3e6abe134634adbcc0c1e843826e42df86e63beb3bc7e8e4a914e93179ae1e75"
METADATA = "metadata/raw/arm64-26.5.fwinfo"
STUB = Path(__file__).parents[1] / "Stub" / "CoreML"
OLDEST_MACOS = (13, 0)
IOS_OF_MACOS = {13: 16, 14: 17, 15: 18, 26: 26}
_PAGE = "https://developer.apple.com/documentation/coreml/"
OVERLAY: Mapping[str, tuple[str, str]] = {
    "compileModel(at:)": (
        "+[MLModel compileModelAtURL:completionHandler:]",
        _PAGE + "mlmodel/compilemodel(at:)-6442s",
    ),
    "load(contentsOf:configuration:)": (
        "+[MLModel loadContentsOfURL:configuration:completionHandler:]",
        _PAGE + "mlmodel/load(contentsof:configuration:)",
    ),
    "prediction(from:options:)": (
        "-[MLModel predictionFromFeatures:options:completionHandler:]",
        _PAGE + "mlmodel/prediction(from:options:)-81mmf",
    ),
    "withUnsafeBytes(_:)": (
        "-[MLMultiArray getBytesWithHandler:]",
        _PAGE + "mlmultiarray/withunsafebytes(_:)",
    ),
    "withUnsafeMutableBytes(_:)": (
        "-[MLMultiArray getMutableBytesWithHandler:]",
        _PAGE + "mlmultiarray/withunsafemutablebytes(_:)",
    ),
}
"""Swift form -> the selector behind it, and Apple's page. At most ten rows."""
_ASK_PIP = """
from pip._internal.configuration import Configuration
from pip._internal.models.index import PyPI
configuration = Configuration(isolated=False)
configuration.load()
values = dict(configuration.items())
values = {key.rpartition(".")[2]: value for key, value in values.items()}
print(values.get("index-url", PyPI.simple_url))
"""
_DECLARATION = re.compile(
    r"^\s*(?:@available\([^)]*\)\s*)?(?:public |convenience |override )*"
    r"(?:class func|func|var|let|init|case|class|enum|protocol)\b"
)
_AVAILABLE = re.compile(r"@available\(macOS (\d+)\.(\d+), iOS (\d+)\.(\d+), \*\)")
_VALUE = re.compile(r"\bcase \w+ = (\d+)")


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """A declaration of the stub: what it says it is, and what it is."""

    where: str
    text: str
    objc: tuple[str, ...] = ()
    overlay: str | None = None
    macos: tuple[int, int] | None = None
    ios: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Headers:
    """What Apple's headers have: selector -> macOS that brought it, constants -> value, types."""

    selectors: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    constants: Mapping[str, int] = field(default_factory=dict)
    types: frozenset[str] = frozenset()


def declarations(folder: Path = STUB) -> Iterator[Declaration]:
    """The public declarations of the stub, with the marks above them."""
    for path in sorted(folder.glob("ML*.swift")):
        marks: list[str] = []
        available: re.Match[str] | None = None
        inside = False
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            text = line.strip()
            if text.startswith(("// objc:", "// overlay:")):
                marks.append(text.removeprefix("// "))
            elif text.startswith("@available"):
                available = _AVAILABLE.search(text)
                if available is None:
                    raise SystemExit(f"{path.name}:{number}: write @available(macOS X, iOS Y, *)")
            elif (text.startswith("public ") or marks) and _DECLARATION.match(line):
                yield _declaration(f"{path.name}:{number}", text, marks, available)
                marks, available = [], None
            inside = inside or bool(marks)


def _declaration(
    where: str, text: str, marks: list[str], available: re.Match[str] | None
) -> Declaration:
    objc = [mark.removeprefix("objc:").strip() for mark in marks if mark.startswith("objc:")]
    overlay = [m.removeprefix("overlay:").strip() for m in marks if m.startswith("overlay:")]
    selectors = re.findall(r"[-+]\[[^\]]+\]|\bML\w+", " ".join(objc))
    versions = [int(digits) for digits in available.groups()] if available else []
    return Declaration(
        where=where,
        text=text,
        objc=tuple(selectors),
        overlay=overlay[0] if overlay else None,
        macos=(versions[0], versions[1]) if versions else None,
        ios=(versions[2], versions[3]) if versions else None,
    )


def headers(document: Mapping[str, Any]) -> Headers:
    """Selectors, constants and types of pyobjc's metadata."""
    found = document["definitions"]
    selectors: dict[str, tuple[int, int]] = {}
    for name, record in {**found["classes"], **found["formal_protocols"]}.items():
        for method in record["methods"]:
            sign = "+" if method["class_method"] else "-"
            selectors[f"{sign}[{name} {method['selector']}]"] = _version(method.get("introduced"))
    return Headers(
        selectors=selectors,
        constants={name: record["value"] for name, record in found["enum"].items()},
        types=frozenset([*found["classes"], *found["formal_protocols"], *found["enum_type"]]),
    )


def _version(text: str | None) -> tuple[int, int]:
    major, _, minor = (text or "0.0").partition(".")
    return int(major), int(minor.partition(".")[0] or 0)


def problems(stub: list[Declaration], apple: Headers) -> Iterator[str]:
    """Each way in which the stub is not what the headers say, in one line."""
    if len(OVERLAY) > 10:
        yield f"the list of overlays has {len(OVERLAY)} rows; ten are legal"
    used = {each.overlay for each in stub}
    for name in sorted(set(OVERLAY) - used):
        yield f"overlay {name}: no declaration of the stub"
    for each in stub:
        if not each.objc and each.overlay is None:
            yield f"{each.where}: {each.text}: neither objc: nor overlay: stands above it"
        if each.overlay is not None and each.overlay not in OVERLAY:
            yield f"{each.where}: overlay {each.overlay} is not in the list"
            continue
        names = each.objc if each.overlay is None else (OVERLAY[each.overlay][0],)
        for name in names:
            yield from _compared(each, name, apple)


def _compared(each: Declaration, name: str, apple: Headers) -> Iterator[str]:
    value = _VALUE.search(each.text)
    if name.startswith("ML"):
        if name not in apple.types and name not in apple.constants:
            yield f"{each.where}: Apple's headers have no {name}"
        elif value is not None and apple.constants.get(name) != int(value[1]):
            yield f"{each.where}: {name} is {apple.constants.get(name)}, not {value[1]}"
        return
    if name.endswith(" init]"):
        return  # NSObject's
    introduced = apple.selectors.get(name)
    if introduced is None:
        yield f"{each.where}: Apple's headers have no {name}"
        return
    wanted = None if introduced <= OLDEST_MACOS else introduced
    if each.macos != wanted:
        yield f"{each.where}: {name} came with macOS {introduced}, the stub says {each.macos}"
    if wanted is not None and each.ios != (IOS_OF_MACOS.get(wanted[0]), wanted[1]):
        yield f"{each.where}: {name}: iOS {each.ios} is not the iOS of macOS {wanted}"


# --------------------------------------------------------------------------------- the bindings


def cached() -> Path:
    """pyobjc's metadata, downloaded with pip where it is not there."""
    home = os.environ.get("XDG_CACHE_HOME")
    cache = (Path(home) if home else Path.home() / ".cache") / "mtu-export" / "coreml-headers"
    metadata = cache / f"{VERSION}.fwinfo"
    if metadata.is_file():
        return metadata
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / f"pyobjc_framework_coreml-{VERSION}.tar.gz"
    if not archive.is_file():
        _download(archive)
    if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
        archive.unlink()
        raise SystemExit(f"{archive.name}: its sha256 is not {SHA256}; it was removed")
    with tarfile.open(archive) as package:
        member = package.extractfile(f"{archive.name.removesuffix('.tar.gz')}/{METADATA}")
        assert member is not None
        draft = metadata.with_name(f"{metadata.name}.{os.getpid()}")
        draft.write_bytes(member.read())
    draft.replace(metadata)
    return metadata


def _download(archive: Path) -> None:
    """Fetch the source distribution from the index of pip.

    `pip download` itself would build it, which needs macOS.
    """
    page = f"{_index().rstrip('/')}/{PACKAGE.lower()}/"
    with urllib.request.urlopen(page, timeout=60) as answer:  # noqa: S310
        text = answer.read(10_000_000).decode("utf-8", "replace")
    link = re.search(rf'href="([^"]*/{re.escape(archive.name)})[#"]', text)
    if link is None:
        raise SystemExit(f"pip's index has no {archive.name}")
    draft = archive.with_name(f"{archive.name}.{os.getpid()}")
    with urllib.request.urlopen(urllib.parse.urljoin(page, link[1]), timeout=60) as answer:  # noqa: S310
        draft.write_bytes(answer.read(10_000_000))
    draft.replace(archive)


def _index() -> str:
    """The index that pip takes packages from."""
    for python in (sys.executable, "python3"):
        done = subprocess.run([python, "-c", _ASK_PIP], capture_output=True, text=True)  # noqa: S603
        if done.returncode == 0:
            return done.stdout.strip()
    raise SystemExit("pip is needed to find its index (Debian: apt install python3-pip)")


def read(path: Path) -> dict[str, Any]:
    """The metadata: JSON after lines of comment."""
    lines = path.read_text("utf-8").splitlines()
    return json.loads("\n".join(line for line in lines if not line.startswith("//")))


def main() -> None:
    """Print what is wrong; exit 1 where something is."""
    stub = list(declarations())
    lines = list(problems(stub, headers(read(cached()))))
    for line in lines:
        print(line)
    selectors = sum(len(each.objc) for each in stub)
    print(
        f"{len(stub)} declarations, {selectors} names, {len(OVERLAY)} overlays: {len(lines)} wrong"
    )
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
