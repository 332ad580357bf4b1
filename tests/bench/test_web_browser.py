"""A bundle in headless Chromium, end to end: WebAssembly with threads, and WebGPU in software."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mtu_export import bundle
from mtu_export.bench import record
from mtu_export.bench.api import bench
from mtu_export.bench.devices import web
from mtu_export.bench.web import engine, records
from mtu_export.bench.web.messages import CheckResult, ProviderResult
from mtu_export.spec import ToolchainError
from mtu_export.spec.options import BenchOptions
from mtu_export.testing import chromium
from tests.support.tools import missing, require, require_package
from tests.support.vectors import TESTDATA

pytestmark = pytest.mark.slow
BUNDLE = TESTDATA / "edit-onnx-int8"
CLOSE_DB = 2.0
"""Between this machine's ONNX Runtime and the one that exported."""


@pytest.fixture(scope="module")
def source() -> bundle.Bundle:
    require("chromium")
    try:
        engine.find()
    except ToolchainError as error:
        missing(f"{error} (make web)")
    return bundle.read(BUNDLE)


def measured(source: bundle.Bundle, folder: Path, *flags: str, **values: object) -> web.WebResult:
    """What the page posts; ``folder`` is the browser's profile."""
    program = require("chromium")
    options = web.WebOptions(**{"samples": 2, "deadline_s": 180.0, **values})  # type: ignore[arg-type]
    with chromium.browsers() as browsers:
        return web.serve(
            source, options, opened=lambda url: browsers.open(program, url, folder, flags)
        )


def exported(source: bundle.Bundle, check: CheckResult) -> float:
    """What the exporting machine reached."""
    (verdict,) = (v for v in source.proof if (v.part, v.stage) == (check.part, check.stage))
    assert verdict.psnr_db is not None
    return verdict.psnr_db


def assert_measured(source: bundle.Bundle, provider: ProviderResult, parts: list[str]) -> None:
    assert (provider.status, provider.reason) == ("measured", None)
    assert provider.engine is not None
    assert provider.engine.version == engine.VERSION
    assert [*provider.parts] == parts
    for part in provider.parts.values():
        assert len(part.rounds[0].samples_s) == 2
        assert all(second > 0 for second in part.rounds[0].samples_s)
    for check in provider.checks:
        assert check.passed is not False
        assert abs(check.psnr_db - exported(source, check)) < CLOSE_DB, check.part


def test_webassembly_runs_parts_loop_and_check(source: bundle.Bundle, tmp_path: Path) -> None:
    result = measured(source, tmp_path, providers=("wasm",), threads=2, rounds=2)
    (wasm,) = result.record.providers
    assert result.record.secure_context
    assert result.record.isolated
    assert "Chrome" in result.record.user_agent
    assert wasm.threads == 2
    parts = ["text_encoder", "vae_encoder", "unet", "vae_decoder"]
    assert_measured(source, wasm, parts)
    assert [len(part.rounds) for part in wasm.parts.values()] == [2] * 4
    assert [check.part for check in wasm.checks] == [*parts, "pipeline", "pipeline"]
    assert [check.stage for check in wasm.checks[-2:]] == ["passes", "loop"]
    assert wasm.image is not None
    assert (wasm.image.steps, wasm.image.passes) == (4, 5)
    assert {name: calls.count for name, calls in wasm.image.calls.items()} == {
        "text_encoder": 2, "vae_encoder": 2, "unet": 30, "vae_decoder": 2,
    }  # fmt: skip
    assert [each.seconds is not None for each in wasm.image.rounds] == [True, True]
    assert wasm.memory is not None
    assert (wasm.memory.wasm or 0) > source.bytes
    run = records.collect([source], BenchOptions(device="web"), lambda *_: result)
    path = tmp_path / "record.json"
    record.write(run, path)
    rows = record.read(path).measurements
    assert [(row.part, row.status, row.provider) for row in rows] == [
        (part, "measured", "wasm") for part in [*parts, record.IMAGE]
    ]
    assert all(row.latency is not None and row.threads == 2 for row in rows)
    assert all(row.checks and all(check.passed for check in row.checks) for row in rows)
    assert [len(row.rounds) for row in rows] == [2] * 5
    assert not any(row.emulated for row in rows)
    assert run.device.kind == "web"
    assert run.device.secure_context


def test_webgpu_runs_a_part_and_its_check(source: bundle.Bundle, tmp_path: Path) -> None:
    """Shaders of convolutions take minutes to compile in software; those of text do not."""
    part = "text_encoder"
    result = measured(
        source, tmp_path, *chromium.SOFTWARE_GPU, providers=("webgpu",), parts=(part,), image=False
    )
    (webgpu,) = result.record.providers
    assert "swiftshader" in (webgpu.adapter or "").lower()
    assert_measured(source, webgpu, [part])
    assert [check.part for check in webgpu.checks] == [part]
    (row,) = records.measurements_of(source, result)
    assert (row.part, row.provider, row.status, row.emulated) == (part, "webgpu", "measured", True)


def test_by_tls_it_is_a_secure_context(source: bundle.Bundle, tmp_path: Path) -> None:
    """With threads; a browser without WebGPU says so."""
    require_package("trustme", "web")
    result = measured(
        source, tmp_path, "--ignore-certificate-errors", "--disable-gpu", host="127.0.0.2",
        parts=("text_encoder",), image=False, check=False, threads=2,
    )  # fmt: skip
    assert result.url.startswith("https://127.0.0.2:")
    assert (result.record.secure_context, result.record.isolated) == (True, True)
    wasm, webgpu = result.record.providers
    assert (wasm.status, wasm.threads, wasm.checks) == ("measured", 2, ())
    assert (webgpu.status, "WebGPU" in (webgpu.reason or "")) == ("not run", True)


def test_the_command_measures_a_part(source: bundle.Bundle, tmp_path: Path) -> None:
    program, lines = require("chromium"), []
    with chromium.browsers() as browsers:

        def progress(line: str) -> None:
            lines.append(line)
            if line.startswith("open "):
                browsers.open(program, line.split()[1], tmp_path / "profile", ["--disable-gpu"])

        options = BenchOptions(device="web", part=["text_encoder"], rounds=1, samples=2)
        run = bench([source], options, progress=progress)
    assert [(row.part, row.provider, row.status) for row in run.measurements] == [
        ("text_encoder", "wasm", "measured"),
        ("text_encoder", "webgpu", "not run"),
    ]
    assert len(run.measurements[0].rounds[0].samples_s) == 2
    assert any(line.endswith("wasm: loading ONNX Runtime Web") for line in lines)


def test_by_plain_http_elsewhere_it_has_one_thread(
    source: bundle.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phone without TLS and adb. 127.0.0.0/8 is secure by itself, so a name stands for it."""
    monkeypatch.setitem(__import__("sys").modules, "trustme", None)
    monkeypatch.setattr(web, "_names", lambda host: ("phone.example",))
    flags = ("--host-resolver-rules=MAP phone.example 127.0.0.2",)
    result = measured(
        source, tmp_path, *flags, host="127.0.0.2", parts=("text_encoder",), image=False, threads=2
    )
    assert result.url.startswith("http://phone.example:")
    assert (result.record.secure_context, result.record.isolated) == (False, False)
    wasm, webgpu = result.record.providers
    assert_measured(source, wasm, ["text_encoder"])
    assert wasm.threads == 1
    assert (webgpu.status, webgpu.reason) == (
        "not run",
        "WebGPU needs a secure context: https, or localhost",
    )


def test_a_part_that_cannot_be_loaded_is_a_result(tmp_path: Path, source: bundle.Bundle) -> None:
    """The page checks hashes itself, so the file changes after the server has read the bundle."""
    folder = shutil.copytree(BUNDLE, tmp_path / "bundle")
    copied = bundle.read(folder)
    file = folder / "unet" / "model.onnx"
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(bytes(data))
    result = measured(copied, tmp_path / "profile", providers=("wasm",))
    (wasm,) = result.record.providers
    assert wasm.status == "failed"
    assert wasm.reason == "refused: unet: its sha256 is not the manifest's (rule 6)"
    rows = [*records.measurements_of(copied, result)]
    assert {row.status for row in rows} == {"failed"}
    assert len(rows) == 5
