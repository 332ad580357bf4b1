"""A browser as a device: one page measures an ONNX bundle and posts its record back.

Threads of WebAssembly and WebGPU exist in a secure context alone: 127.0.0.1, a phone behind
``adb reverse``, or https. So another ``host`` is served by TLS with a certificate of the run, which
the browser warns of once; without trustme by plain http, with one thread and no WebGPU.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from mtu_export.bench.record import IMAGE, Run
from mtu_export.bench.suite import ROUNDS
from mtu_export.bench.web import engine
from mtu_export.bench.web.messages import (
    LARGEST_EVENT,
    LARGEST_RECORD,
    PROVIDERS,
    PageEvent,
    PageRecord,
    Plan,
    Provider,
    parse_record,
)
from mtu_export.bench.web.server import PageServer, Site
from mtu_export.bundle import MANIFEST, Bundle, Part, files_of, inside
from mtu_export.spec import DeviceError, PlanError, UnknownName, Unsupported
from mtu_export.spec.options import BenchOptions

LOOPBACK = ("127.0.0.1", "localhost")
PAGE = Path(__file__).parents[1] / "web"
PAGE_FILES = (
    "page.html", "page.css", "page.js", "view.js", "resume.js", "worker.js", "measure.js",
)  # fmt: skip
MODULE = "mtu"
"""Folder of the ES module below the page: in the wheel beside it, in a checkout runtime/web."""
ADB_SECONDS = 20
_FEWEST, _MOST, _FLOPS = 3, 20, 5e11
"""Samples of a round, and the FLOPs that they may take together: a browser is slower than C++."""
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class WebOptions:
    """What is measured, and where the page is served.

    ``parts`` are those of the task's flow by default. ``samples`` of a round follow from a part's
    work by default; ``rounds`` are workers. ``threads`` 0 leaves the number to the page.
    ``adb`` is the serial of a phone whose ``localhost`` the page becomes, and whose browser opens
    it. ``ort_web`` is the folder of onnxruntime-web. ``deadline_s`` is the time to open the page
    and, again, the time to measure.
    """

    task: str | None = None
    parts: tuple[str, ...] | None = None
    providers: tuple[Provider, ...] = PROVIDERS
    samples: int | None = None
    rounds: int = 1
    warmup: int = 1
    threads: int = 0
    image: bool = True
    check: bool = True
    host: str = LOOPBACK[0]
    port: int = 0
    adb: str | None = None
    ort_web: Path | None = None
    deadline_s: float = 1800.0


@dataclass(frozen=True, kw_only=True)
class WebResult:
    """The record of a browser, what it was asked, and how the page was served.

    ``bench/web/records.py`` makes measurements of it.
    """

    record: PageRecord
    plan: Plan
    url: str
    notes: tuple[str, ...] = ()


def serve(
    bundle: Bundle,
    options: WebOptions | None = None,
    progress: Progress = lambda line: None,
    opened: Callable[[str], None] | None = None,
) -> WebResult:
    """Serve the page until it has posted its record.

    ``progress`` is called with one line on what happens, first with the address to open;
    ``opened`` with that address alone. A provider that fails is part of the record. Raises
    ``PlanError`` for options that cannot be, ``Unsupported`` for another target than ONNX,
    ``ToolchainError`` without onnxruntime-web, and ``DeviceError`` where no record came in time or
    it is refused.
    """
    options = options or WebOptions()
    plan = _plan(bundle, options)
    content = _content(bundle, plan, engine.files(engine.find(options.ort_web)))
    inbox = _Inbox(plan, progress)
    token = secrets.token_urlsafe(24)
    posts = {"record": (LARGEST_RECORD, inbox.record), "event": (LARGEST_EVENT, inbox.event)}
    site = Site(token=token, content=content, posts=posts, answered=inbox.answered)
    with ExitStack() as stack:
        names, context, notes = stack.enter_context(_identity(options))
        try:
            server = PageServer((options.host, options.port), site, names, context)
        except OSError as error:
            where = f"{options.host}:{options.port}"
            raise PlanError(f"cannot listen on {where}: {error.strerror or error}") from None
        stack.callback(server.server_close)
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        stack.callback(server.shutdown)
        scheme = "https" if context else "http"
        name = "localhost" if options.adb else names[0]
        url = f"{scheme}://{name}:{server.port}/{token}/"
        if options.adb is not None:
            stack.enter_context(_reversed(options.adb, server.port, url, progress))
        for note in notes:
            progress(note)
        progress(f"open {url} in the browser")
        if opened is not None:
            opened(url)
        record = inbox.wait(options.deadline_s)
    return WebResult(record=record, plan=plan, url=url, notes=notes)


class _Inbox:
    """What the page posts."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan, self.progress = plan, progress
        self._lock, self._done = threading.Lock(), threading.Event()
        self._record: PageRecord | None = None
        self._error: DeviceError | None = None
        self._last = "it was not opened"
        self._opened: float | None = None

    def event(self, data: bytes) -> HTTPStatus:
        """A line on what the page does."""
        try:
            event = PageEvent.model_validate_json(data)
        except ValueError:
            return HTTPStatus.UNPROCESSABLE_ENTITY
        text = "".join(letter if letter.isprintable() else "?" for letter in event.text)
        with self._lock:
            self._opened = self._opened or time.monotonic()
            self._last = f"the last that it said is {text!r}"
            self.progress(f"{event.done:4.0%}  {text}")
        return HTTPStatus.NO_CONTENT

    def record(self, data: bytes) -> HTTPStatus:
        """The record: the first one counts."""
        with self._lock:
            if self._record is not None or self._error is not None:
                return HTTPStatus.CONFLICT
            try:
                self._record = parse_record(data, self.plan)
            except DeviceError as error:
                self._error = error
                return HTTPStatus.UNPROCESSABLE_ENTITY
        return HTTPStatus.NO_CONTENT

    def answered(self, path: str) -> None:
        """The page has its answer, so that the server may stop."""
        if path == "record":
            self._done.set()

    def wait(self, seconds: float) -> PageRecord:
        """The record; raises ``DeviceError`` where it is refused or does not come."""
        start = time.monotonic()
        while not self._done.wait(0.1):
            if time.monotonic() >= (self._opened or start) + seconds:
                raise DeviceError(f"the page posted no record in {seconds:g} s; {self._last}")
        if self._record is None:
            raise self._error or DeviceError("the page posted no record")
        return self._record


# ------------------------------------------------------------------------------ what is served


def _plan(bundle: Bundle, options: WebOptions) -> Plan:
    manifest = bundle.manifest
    if manifest.target != "onnx":
        raise Unsupported(f"a browser runs ONNX bundles; this one is for {manifest.target}")
    names = [task.name for task in bundle.tasks]
    if options.task is None and len(names) > 1:
        raise PlanError(f"name a task; this bundle has: {', '.join(names)}")
    name = options.task or names[0]
    if name not in names:
        raise UnknownName("task", name, names)
    called = bundle.task(name).flow.parts
    for part in options.parts or ():
        if part not in called:
            raise UnknownName("part", part, called)
    parts = tuple(part for part in called if part in (options.parts or called))
    unknown = [each for each in options.providers if each not in PROVIDERS]
    if unknown or not options.providers or len({*options.providers}) < len(options.providers):
        raise PlanError(f"providers must be of {', '.join(PROVIDERS)}, each once")
    for key, least, most in (("samples", 1, 10_000), ("rounds", 1, 100), ("threads", 0, 256)):
        value = getattr(options, key)
        if value is not None and not least <= value <= most:
            raise PlanError(f"{key} must be {least} to {most}, got {value}")
    return Plan(
        name=manifest.name,
        task=name,
        bytes=sum(bundle.part(part).bytes for part in parts),
        height=manifest.image.height,
        width=manifest.image.width,
        paths=tuple(_bundle_files(bundle)),
        parts={part: options.samples or _samples(bundle.part(part)) for part in parts},
        providers=options.providers,
        rounds=options.rounds,
        warmup=options.warmup,
        threads=options.threads,
        image=options.image,
        check=options.check,
        deadline_s=options.deadline_s / len(options.providers),
    )


def _samples(part: Part) -> int:
    """Samples of a round, by the work of one."""
    return max(_FEWEST, min(_MOST, int(_FLOPS // max(part.record.cost.flops_total, 1))))


def _bundle_files(bundle: Bundle) -> dict[str, Path]:
    """What the manifest names, by path within the bundle; links are refused."""
    folder = bundle.folder.resolve()
    files = {MANIFEST: folder / MANIFEST}
    for record in (*bundle.manifest.parts, *bundle.manifest.files):
        for path in files_of(inside(folder, record.path)):
            files[path.relative_to(folder).as_posix()] = path
    return files


def _content(bundle: Bundle, plan: Plan, ort: Mapping[str, Path]) -> dict[str, Path | bytes]:
    content: dict[str, Path | bytes] = {name: (PAGE / name).resolve() for name in PAGE_FILES}
    content[""] = content.pop("page.html")
    content["plan.json"] = plan.model_dump_json().encode()
    content |= {f"{MODULE}/{path.name}": path.resolve() for path in module_files()}
    content |= {f"ort/{name}": path.resolve() for name, path in ort.items()}
    content |= {f"bundle/{name}": path for name, path in _bundle_files(bundle).items()}
    return content


def module_files() -> list[Path]:
    """The files of the ES module (runtime/web), of the wheel or of this checkout."""
    for folder in (PAGE / MODULE, PAGE.parents[2] / "runtime" / "web"):
        files = sorted(folder.glob("*.js"))
        if files:
            return files
    raise DeviceError("this installation lacks the page's module runtime/web")


# -------------------------------------------------------------------------------- who is served


Identity = tuple[tuple[str, ...], ssl.SSLContext | None, tuple[str, ...]]
"""Legal host names, the one to show first; TLS; lines on what that means."""


@contextmanager
def _identity(options: WebOptions) -> Iterator[Identity]:
    """How the page is reached."""
    if options.host in LOOPBACK:
        yield LOOPBACK, None, ()
        return
    if options.adb is not None:
        raise PlanError("a page behind adb is served on 127.0.0.1: leave out the host")
    names = _names(options.host)
    try:
        import trustme
    except ImportError:
        note = "trustme is not installed (extra web): plain http, so one thread and no WebGPU"
        yield names, None, (note,)
        return
    certificate = trustme.CA().issue_cert(*(name.strip("[]") for name in names))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    yield names, context, ("the certificate is of this run: the browser warns of it once",)


def _names(host: str) -> tuple[str, ...]:
    """The names by which a host is reached: of all addresses, that of the way out."""
    if host not in ("0.0.0.0", "::"):  # noqa: S104
        return (f"[{host}]" if ":" in host else host,)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect(("192.0.2.1", 9))  # sends nothing
            return (way.getsockname()[0], *LOOPBACK)
        except OSError:
            return LOOPBACK


@contextmanager
def _reversed(serial: str, port: int, url: str, progress: Progress) -> Iterator[None]:
    """A phone's localhost:port is this one's, until the page is done."""
    _adb(serial, "reverse", f"tcp:{port}", f"tcp:{port}")
    try:
        view = ("am", "start", "-a", "android.intent.action.VIEW", "-d", url)
        try:
            _adb(serial, "shell", *view)
        except DeviceError as error:
            progress(f"the phone's browser was not started: {error}")
        yield
    finally:
        try:
            _adb(serial, "reverse", "--remove", f"tcp:{port}")
        except DeviceError as error:
            progress(f"adb reverse tcp:{port} was not removed: {error}")


def _adb(serial: str | None, *arguments: str) -> str:
    adb = shutil.which("adb")
    if adb is None:
        raise DeviceError("adb is not installed (Debian: adb)")
    try:
        done = subprocess.run(  # noqa: S603
            [adb, *([] if serial is None else ["-s", serial]), *arguments],
            capture_output=True,
            text=True,
            timeout=ADB_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"adb {arguments[0]}: no answer in {ADB_SECONDS} s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise DeviceError(f"adb {arguments[0]}: {lines[-1]}")
    return done.stdout


def bench(sources: Sequence[Bundle], options: BenchOptions, progress: Progress) -> Run:
    """What ``mtu-export bench --device web`` measures: a page for each bundle and task.

    Raises as :func:`serve` does, and ``PlanError`` for options that a browser has no use for.
    """
    from mtu_export.bench.web import records

    for name, flag in (("baseline", "--baseline"), ("engine_options", "--option")):
        if getattr(options, name):
            raise PlanError(f"{flag} is for --device host and adb, not for a browser")
    if options.cpus != "all":
        raise PlanError("--cpus is for --device host and adb: a browser chooses its cores")

    def measure(source: Bundle, task: str) -> WebResult:
        parts = tuple(part for part in source.task(task).flow.parts if part in options.part)
        return serve(source, _options(options, task, parts or None), progress)

    return records.collect(sources, options, measure)


def _options(options: BenchOptions, task: str, parts: tuple[str, ...] | None) -> WebOptions:
    """``--device web``, ``web:ADDRESS`` or ``web:adb:SERIAL``."""
    where = options.device.partition(":")[2]
    host, _, serial = where.partition(":") if where.startswith("adb") else (where, "", "")
    return WebOptions(
        task=task,
        parts=parts,
        samples=options.samples,
        rounds=options.rounds or ROUNDS[options.mode],
        threads=options.threads,
        image=not options.part or IMAGE in options.part,
        host=LOOPBACK[0] if host in ("", "adb") else host,
        adb=_serial(serial) if host == "adb" else None,
        ort_web=None if options.ort_web is None else Path(options.ort_web),
    )


def _serial(named: str) -> str:
    """The serial of a phone; the only one that adb has where none is named."""
    if named:
        return named
    lines = [line.split() for line in _adb(None, "devices").splitlines()[1:]]
    serials = [words[0] for words in lines if words[1:2] == ["device"]]
    if len(serials) == 1:
        return serials[0]
    raise DeviceError(f"adb has {len(serials)} phones: name one, --device web:adb:SERIAL")
