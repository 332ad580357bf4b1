"""The page's server: what it serves, what it refuses, and when it stops. No browser."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from mtu_export import bundle
from mtu_export.bench.devices import web
from mtu_export.bench.web import engine
from mtu_export.bench.web.messages import LARGEST_EVENT, LARGEST_RECORD
from mtu_export.spec import DeviceError, PlanError, ToolchainError, UnknownName, Unsupported
from mtu_export.spec.options import BenchOptions
from tests.support.tools import require_package
from tests.support.vectors import TESTDATA

BUNDLE = TESTDATA / "edit-onnx-int8"
OPTIONS = {"providers": ("wasm",), "image": False, "check": False, "deadline_s": 20.0}
PARTS = ("text_encoder", "vae_encoder", "unet", "vae_decoder")


@pytest.fixture
def ort(tmp_path: Path) -> Path:
    """A folder that looks like the npm package."""
    package = tmp_path / "ort"
    (package / "dist").mkdir(parents=True)
    document = {"name": engine.PACKAGE, "version": engine.VERSION}
    (package / "package.json").write_text(json.dumps(document))
    for names in engine.FILES.values():
        for name in names:
            (package / "dist" / name).write_text(name)
    (package / "dist" / "other.js").write_text("not listed")
    return package


@pytest.fixture
def copied(tmp_path: Path) -> bundle.Bundle:
    folder = shutil.copytree(BUNDLE, tmp_path / "bundle")
    (folder / "secret.txt").write_text("secret")
    (tmp_path / "outside.txt").write_text("outside")
    return bundle.read(folder)


@dataclass
class Running:
    """A server in a thread; what it returned or raised."""

    url: str
    thread: threading.Thread
    outcome: list[Any]
    lines: list[str]

    def ask(
        self, path: str = "", method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """An answer to a path below the token, or to a whole one that begins with a slash."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=10)
        with closing(connection):
            target = path if path.startswith("/") else parts.path + path
            connection.putrequest(method, target, skip_host="Host" in headers)
            if body is not None and "Content_Length" not in headers:
                headers["Content_Length"] = str(len(body))
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())

    def post(self, path: str, value: Any, **headers: str) -> int:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.ask(path, "POST", body, **{"Content_Type": "application/json", **headers})[0]

    def end(self) -> Any:
        """The result; raises what the server raised."""
        self.thread.join(20)
        assert not self.thread.is_alive()
        (result,) = self.outcome
        if isinstance(result, Exception):
            raise result
        return result


@contextmanager
def running(source: bundle.Bundle, **values: Any) -> Iterator[Running]:
    ready, urls, outcome, lines = threading.Event(), [], [], []

    def opened(url: str) -> None:
        urls.append(url)
        ready.set()

    def work() -> None:
        try:
            options = web.WebOptions(**{**OPTIONS, **values})
            outcome.append(web.serve(source, options, lines.append, opened))
        except Exception as error:
            outcome.append(error)
            ready.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(20)
    server = Running(urls[0] if urls else "", thread, outcome, lines)
    yield server
    if thread.is_alive():
        server.post("record", b"{}")
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def served(copied: bundle.Bundle, ort: Path) -> Iterator[Running]:
    with running(copied, ort_web=ort) as server:
        yield server


def record(**values: Any) -> dict[str, Any]:
    """What the page posts when all went well."""
    rounds = [{"load_s": 1, "load_again_s": 0.5, "first_s": 0.25, "samples_s": [0.125, 0.25]}]
    part = {"status": "measured", "reason": None, "rounds": rounds}
    provider = {"provider": "wasm", "status": "measured", "reason": None, "threads": 1}
    provider["engine"] = {"name": "onnxruntime-web", "version": engine.VERSION}
    provider["parts"] = dict.fromkeys(PARTS, part)
    browser = {
        "format": 1, "user_agent": "test", "platform": None, "platform_version": None,
        "model": None, "architecture": None, "mobile": None, "cores": 2, "device_memory": 4,
        "secure_context": True, "isolated": False,
    }  # fmt: skip
    return {**browser, "providers": [provider], **values}


# ----------------------------------------------------------------------------------- what it serves


def test_page_module_engine_and_bundle_are_served(served: Running) -> None:
    for path, kind in (
        ("", "text/html"),
        ("page.js", "text/javascript"),
        ("mtu/mtu.js", "text/javascript"),
        ("ort/ort-wasm-simd-threaded.wasm", "application/wasm"),
        ("bundle/manifest.json", "application/json"),
        ("bundle/unet/model.onnx", "application/octet-stream"),
        ("plan.json", "application/json"),
    ):
        status, body, headers = served.ask(path)
        assert (status, bool(body)) == (200, True), path
        assert headers["Content-Type"].startswith(kind)
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"
    assert served.ask("bundle/unet/model.onnx")[1] == (BUNDLE / "unet/model.onnx").read_bytes()


def test_what_the_page_imports_is_served(served: Running) -> None:
    names = [name for name in web.PAGE_FILES if name != "page.html"]
    names += [f"mtu/{path.name}" for path in web.module_files()]
    assert len(names) > 20
    for name in names:
        assert served.ask(name)[0] == 200, name


def test_every_path_of_the_plan_is_served(served: Running) -> None:
    plan = json.loads(served.ask("plan.json")[1])
    assert tuple(plan["parts"]) == PARTS
    assert "manifest.json" in plan["paths"]
    assert len(plan["paths"]) > 10
    for path in plan["paths"]:
        assert served.ask(f"bundle/{path}")[0] == 200, path


# ---------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    "path",
    [
        "bundle/secret.txt", "bundle/../secret.txt", "bundle/../../outside.txt", "bundle/",
        "bundle/unet", "bundle/unet/", "bundle//manifest.json", "bundle/./manifest.json",
        "bundle/%2e%2e/%2e%2e/outside.txt", "bundle/..%2foutside.txt", "bundle/%2e%2e%5coutside",
        "bundle/manifest.json%00", "bundle/manifest.json?x=1", "bundle/manifest.json#x",
        "bundle/%ff", "ort/other.js", "ort/package.json", "ort/../package.json", "server.py",
        "page.html/", "mtu/", "mtu/package.json", "mtu/README.md", "..", "../", "record", "event",
        "bundle/README.md",
    ],
)  # fmt: skip
def test_nothing_else_is_served(served: Running, path: str) -> None:
    status, body, _ = served.ask(path)
    assert (status, body) == (404, b"")


def test_another_token_sees_nothing(served: Running) -> None:
    token = urlsplit(served.url).path.strip("/")
    assert len(token) >= 32
    for other in ("", token[:-1], token + "x", token.swapcase(), "%" + token, "%c3%a9"):
        assert served.ask(f"/{other}/page.js")[0] == 404, other
    assert served.ask(f"/{token}")[0] == 404
    assert served.ask("/")[0] == 404
    assert served.ask("/favicon.ico")[0] == 404


def test_two_runs_have_two_tokens(copied: bundle.Bundle, ort: Path) -> None:
    with running(copied, ort_web=ort) as one, running(copied, ort_web=ort) as other:
        assert urlsplit(one.url).path != urlsplit(other.url).path


def test_another_host_is_refused(served: Running) -> None:
    port = urlsplit(served.url).port
    for host in ("example.org", f"example.org:{port}", "127.0.0.1", f"127.0.0.1:{port}x", ""):
        assert served.ask(Host=host)[0] == 404, host
    assert served.ask(Host=f"LOCALHOST:{port}")[0] == 200


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(served: Running, method: str) -> None:
    assert served.ask("page.js", method)[0] == 405
    assert served.ask("record", method)[0] == 405


def test_a_link_that_took_the_place_of_a_file_is_not_followed(
    served: Running, copied: bundle.Bundle, tmp_path: Path
) -> None:
    for path in (copied.folder / "manifest.json", copied.folder / "unet"):
        path.rename(path.with_name(path.name + ".away"))
        path.symlink_to(tmp_path / "outside.txt" if path.suffix else tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.onnx").write_text("outside")
    assert served.ask("bundle/manifest.json")[0] == 404
    assert served.ask("bundle/unet/model.onnx")[0] == 404


def test_posts_need_a_length_a_kind_and_their_own_origin(served: Running) -> None:
    event, origin = {"text": "x", "done": 0.5}, served.url.split("/")[2]
    assert served.post("event", event) == 204
    assert served.post("event", event, Origin=f"http://{origin}") == 204
    assert served.post("event", event, Origin="http://example.org") == 404
    assert served.post("event", event, Origin="null") == 404
    assert served.post("event", event, Host="example.org") == 404
    assert served.post("event", event, Content_Type="text/plain") == 415
    assert served.ask("event", "POST", Content_Type="application/json")[0] == 411
    assert served.post("event", b"{}", Content_Length="-1") == 411
    assert served.post("event", b"{}", Content_Length="1_0") == 411
    assert served.post("event", b"2\r\n{}\r\n0\r\n\r\n", Transfer_Encoding="chunked") == 411
    assert served.post("event", b"x" * (LARGEST_EVENT + 1)) == 413
    assert served.post("record", b"{}", Content_Length=str(LARGEST_RECORD + 1)) == 413
    assert served.post("record", b"{}", Content_Length="9" * 30) == 413
    assert served.post("page.js", event) == 404
    for wrong in (
        b"",
        b"[]",
        b"{",
        {"text": "x"},
        {"text": "x" * 301, "done": 1},
        {**event, "x": 1},
    ):
        assert served.post("event", wrong) == 422
    assert served.thread.is_alive()


def test_events_reach_the_caller_in_print(served: Running) -> None:
    assert served.post("event", {"text": "a\u001b[31m line\n", "done": 0.5}) == 204
    assert served.lines[-1] == " 50%  a?[31m line?"


# ------------------------------------------------------------------------------------ when it stops


def test_it_stops_with_the_record(copied: bundle.Bundle, ort: Path) -> None:
    with running(copied, ort_web=ort) as server:
        assert server.post("record", record()) == 204
        result = server.end()
        assert tuple(result.record.providers[0].parts) == PARTS
        assert result.record.providers[0].parts["unet"].rounds[0].samples_s == (0.125, 0.25)
        assert result.plan.providers == ("wasm",)
        with pytest.raises(ConnectionRefusedError):
            server.ask()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format=2), "format"),
        (lambda r: r.update(extra=1), "extra"),
        (lambda r: r.update(cores=-1), "cores"),
        (lambda r: r.update(user_agent="x" * 1001), "user_agent"),
        (lambda r: r.update(providers=[]), "providers"),
        (lambda r: r["providers"][0].update(provider="webgpu"), "other providers"),
        (lambda r: r["providers"][0].update(provider="cuda"), "provider"),
        (lambda r: r["providers"][0].update(parts={}), "not complete"),
        (lambda r: r["providers"][0]["parts"].update(other={"status": "measured"}), "'other'"),
        (lambda r: r["providers"][0].update(status="failed"), "no reason"),
        (lambda r: r["providers"][0]["parts"]["unet"]["rounds"][0].update(load_s=-1), "load_s"),
        (lambda r: r["providers"][0]["parts"]["unet"]["rounds"][0].update(load_s="1"), "load_s"),
        (
            lambda r: r["providers"][0]["parts"]["unet"]["rounds"][0].update(samples_s=[]),
            "complete",
        ),
    ],
)
def test_a_record_that_is_wrong_is_not_believed(
    copied: bundle.Bundle, ort: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    document = json.loads(json.dumps(record()))
    change(document)
    with running(copied, ort_web=ort) as server:
        assert server.post("record", document) == 422
        with pytest.raises(DeviceError, match="refused") as refused:
            server.end()
    assert message in str(refused.value)


def test_numbers_that_are_not_finite_are_no_record(copied: bundle.Bundle, ort: Path) -> None:
    for text in (b"NaN", b"1e999", b"-Infinity"):
        data = (
            json.dumps(record())
            .encode()
            .replace(b'"device_memory": 4', b'"device_memory": ' + text)
        )
        assert text in data
        with running(copied, ort_web=ort) as server:
            assert server.post("record", data) == 422
            with pytest.raises(DeviceError, match=r"device_memory|JSON"):
                server.end()


def test_a_failed_provider_is_a_result(copied: bundle.Bundle, ort: Path) -> None:
    failed = {"provider": "wasm", "status": "failed", "reason": "out of memory"}
    with running(copied, ort_web=ort) as server:
        assert server.post("record", record(providers=[failed])) == 204
        assert server.end().record.providers[0].reason == "out of memory"


def test_the_first_record_counts(copied: bundle.Bundle, ort: Path) -> None:
    plan = web._plan(copied, web.WebOptions(**OPTIONS))
    inbox = web._Inbox(plan, lambda line: None)
    assert inbox.record(json.dumps(record()).encode()) == 204
    assert inbox.record(json.dumps(record(cores=64)).encode()) == 409
    inbox.answered("record")
    assert inbox.wait(1).cores == 2


def test_it_stops_at_its_deadline(copied: bundle.Bundle, ort: Path) -> None:
    expected = pytest.raises(DeviceError, match=r"no record in 0\.3 s; it was not opened")
    with running(copied, ort_web=ort, deadline_s=0.3) as server, expected:
        server.end()


def test_it_stops_at_an_interrupt(
    copied: bundle.Bundle, ort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls: list[str] = []

    def interrupted(self: Any, seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(web._Inbox, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        web.serve(copied, web.WebOptions(ort_web=ort), opened=urls.append)
    parts = urlsplit(urls[0])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=5)


def test_silent_clients_stop_nobody(served: Running) -> None:
    parts = urlsplit(served.url)
    silent = [socket.create_connection((parts.hostname or "", parts.port or 0)) for _ in range(8)]
    for each in silent[:4]:
        each.sendall(b"GET /")
    assert served.ask()[0] == 200
    for each in silent:
        each.close()


def test_a_body_is_never_taken_for_a_request(served: Running) -> None:
    parts = urlsplit(served.url)
    inner = f"GET {parts.path}plan.json HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n"
    kind = "Content-Type: application/json\r\n"
    for method, path, headers in (
        ("GET", "plan.json", f"Content-Length: {len(inner)}\r\n"),
        ("GET", "plan.json", "Transfer-Encoding: chunked\r\n"),
        ("POST", "nothing", f"Content-Length: {len(inner)}\r\n"),
        ("POST", "event", f"{kind}Content-Length: 0\r\nContent-Length: {len(inner)}\r\n"),
        ("POST", "event", f"{kind}Content-Length: 0\r\nTransfer-Encoding: chunked\r\n"),
        ("PUT", "event", f"Content-Length: {len(inner)}\r\n"),
    ):
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=5) as client:
            head = f"{method} {parts.path}{path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{headers}\r\n"
            client.sendall((head + inner).encode())
            answer = b""
            while piece := client.recv(65536):
                answer += piece
        assert answer.count(b"HTTP/1.1 ") == 1, (method, path, headers)
        assert answer.split()[1][:1] == b"4"


def test_damaged_requests_stop_nobody(served: Running) -> None:
    parts = urlsplit(served.url)
    requests = (
        b"\x16\x03\x01\x02\x00\x01",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"\r\n\r\n",
        b"\xff" * 100 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    )
    for data in requests:
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=5) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            answer = client.recv(1000)
            assert b"<" not in answer
            assert b"Python" not in answer
        assert served.ask()[0] == 200


# ------------------------------------------------------------------------------ how it is reached


def test_another_host_is_served_by_tls(copied: bundle.Bundle, ort: Path) -> None:
    require_package("trustme", "web")
    with running(copied, ort_web=ort, host="127.0.0.2") as server:
        assert server.url.startswith("https://127.0.0.2:")
        assert "certificate" in server.lines[0]
        parts = urlsplit(server.url)
        raw = socket.create_connection((parts.hostname or "", parts.port or 0))  # says nothing
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(parts.netloc, timeout=10, context=context)
        with closing(connection):
            connection.request("GET", parts.path)
            assert connection.getresponse().read().startswith(b"<!doctype html>")
            body = json.dumps(record())
            headers = {"Content-Type": "application/json", "Origin": f"https://{parts.netloc}"}
            connection.request("POST", parts.path + "record", body, headers)
            assert connection.getresponse().status == 204
        assert server.end().record.cores == 2
        raw.close()


def test_without_trustme_it_is_plain_and_says_so(
    copied: bundle.Bundle, ort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "trustme", None)
    with running(copied, ort_web=ort, host="127.0.0.2") as server:
        assert server.url.startswith("http://127.0.0.2:")
        assert "one thread and no WebGPU" in server.lines[0]
        assert server.post("record", record(secure_context=False)) == 204
        result = server.end()
        assert not result.record.secure_context
        assert "trustme" in result.notes[0]


def test_a_phone_behind_adb_is_its_localhost(
    copied: bundle.Bundle, ort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, adb = tmp_path / "adb.log", tmp_path / "bin" / "adb"
    adb.parent.mkdir()
    adb.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {log}\n')
    adb.chmod(0o755)
    monkeypatch.setenv("PATH", str(adb.parent), prepend=":")
    with running(copied, ort_web=ort, adb="SERIAL") as server:
        port = urlsplit(server.url).port
        assert server.url.startswith(f"http://localhost:{port}/")
        assert server.ask(Host=f"localhost:{port}")[0] == 200
        assert server.post("record", record()) == 204
        server.end()
    lines = log.read_text().splitlines()
    assert lines[0] == f"-s SERIAL reverse tcp:{port} tcp:{port}"
    assert lines[1] == f"-s SERIAL shell am start -a android.intent.action.VIEW -d {server.url}"
    assert lines[2:] == [f"-s SERIAL reverse --remove tcp:{port}"]


def test_a_phone_that_does_not_answer_ends_it(
    copied: bundle.Bundle, ort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adb = tmp_path / "bin" / "adb"
    adb.parent.mkdir()
    adb.write_text('#!/bin/sh\necho "error: device not found" >&2\nexit 1\n')
    adb.chmod(0o755)
    monkeypatch.setenv("PATH", str(adb.parent), prepend=":")
    with pytest.raises(DeviceError, match="adb reverse: error: device not found"):
        web.serve(copied, web.WebOptions(ort_web=ort, adb="SERIAL"))


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"task": "other"}, UnknownName),
        ({"parts": ("other",)}, UnknownName),
        ({"providers": ()}, PlanError),
        ({"providers": ("wasm", "wasm")}, PlanError),
        ({"samples": 0}, PlanError),
        ({"rounds": 101}, PlanError),
        ({"host": "192.0.2.1"}, PlanError),
        ({"host": "0.0.0.0", "adb": "SERIAL"}, PlanError),
        ({"ort_web": Path("/nowhere")}, ToolchainError),
    ],
)
def test_options_that_cannot_be(
    copied: bundle.Bundle, ort: Path, values: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        web.serve(copied, web.WebOptions(**{"ort_web": ort, **values}))


@pytest.mark.parametrize(
    "values", [{"baseline": True}, {"cpus": "big"}, {"engine_options": ["a=b"]}]
)
def test_options_of_other_devices(copied: bundle.Bundle, values: dict[str, Any]) -> None:
    options = BenchOptions(device="web", **values)
    with pytest.raises(PlanError, match="--device host and adb"):
        web.bench([copied], options, lambda line: None)


@pytest.mark.parametrize(
    ("device", "host", "serial"),
    [
        ("web", "127.0.0.1", None),
        ("web:0.0.0.0", "0.0.0.0", None),
        ("web:adb:SERIAL", "127.0.0.1", "SERIAL"),
    ],
)
def test_the_device_says_where_the_browser_is(device: str, host: str, serial: str | None) -> None:
    options = web._options(BenchOptions(device=device, part=["unet"]), "edit", ("unet",))
    assert (options.host, options.adb) == (host, serial)
    assert (options.parts, options.image, options.rounds) == (("unet",), False, 3)


def test_other_targets_are_not_for_browsers(copied: bundle.Bundle, ort: Path) -> None:
    manifest = copied.manifest.model_copy(update={"target": "executorch"})
    other = bundle.Bundle(
        folder=copied.folder, manifest=manifest, parts=copied.parts, schedules=copied.schedules
    )
    with pytest.raises(Unsupported, match="executorch"):
        web.serve(other, web.WebOptions(ort_web=ort))


def test_a_bundle_with_a_link_is_not_served(copied: bundle.Bundle, ort: Path) -> None:
    file = copied.folder / "unet" / "model.onnx"
    file.rename(copied.folder / "elsewhere.onnx")
    file.symlink_to(copied.folder / "elsewhere.onnx")
    with pytest.raises(Exception, match="link"):
        web.serve(copied, web.WebOptions(ort_web=ort))


def test_the_error_without_the_engine_has_the_command(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError) as error:
        engine.find(tmp_path)
    assert "npm install --prefix DIR" in str(error.value)
    assert f"onnxruntime-web@{engine.VERSION}" in str(error.value)
    assert "--ort-web DIR" in str(error.value)


def test_the_engine_is_found_by_any_of_its_folders(ort: Path, tmp_path: Path) -> None:
    installed = tmp_path / "npm" / "node_modules" / engine.PACKAGE
    shutil.copytree(ort, installed)
    for named in (installed, installed / "dist", tmp_path / "npm"):
        assert engine.find(named) == installed
    (installed / "dist" / engine.FILES["wasm"][0]).unlink()
    with pytest.raises(ToolchainError, match=engine.FILES["wasm"][0]):
        engine.files(installed)


def test_a_slow_reader_gets_the_whole_file(served: Running) -> None:
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=10)
    with closing(connection):
        connection.request("GET", urlsplit(served.url).path + "bundle/unet/model.onnx")
        answer = connection.getresponse()
        pieces = []
        while piece := answer.read(50_000):
            pieces.append(piece)
            time.sleep(0.01)
    assert b"".join(pieces) == (BUNDLE / "unet/model.onnx").read_bytes()
