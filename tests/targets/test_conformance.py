"""The axes multiplied on real toolchains: targets x schemes, tasks, families."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mtu_export import bundle, exporter, models, targets
from mtu_export.bundle import verification
from mtu_export.exporter import options
from mtu_export.spec import Unsupported
from mtu_export.spec.catalog import SCHEMES
from tests.conftest import TASKS

CORNERS = {("coreml", "fp16"), *((target, "int8") for target in targets.names())}
MATRIX = [
    pytest.param(t, s, id=f"{t}-{s}", marks=() if (t, s) in CORNERS else pytest.mark.exhaustive)
    for t in targets.names()
    for s in SCHEMES
]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "scheme"), MATRIX)
def test_every_target_exports_every_scheme_it_accepts(
    target: str, scheme: str, bundles: Callable[..., Path]
) -> None:
    try:
        folder = bundles(target, scheme, ("inpaint",), "tiny", whole=True)
    except Unsupported as refusal:
        assert any(f"{other}" in str(refusal) for other in SCHEMES if other != scheme)
        return
    exported = bundle.read(folder)
    unet = "quantised" if scheme == "int8" else "exported"
    verdicts = {(verdict.part, verdict.stage): verdict for verdict in exported.proof}
    assert verdicts.pop(("unet", "folded")).passed
    assert ("unet", unet) in verdicts
    assert ("pipeline", "passes") in verdicts
    assert {name for name, _ in verdicts} == {*exported.task("inpaint").flow.parts, "pipeline"}
    for verdict in verdicts.values():
        if targets.runtime(targets.load(target)).runner()[0] is None:
            assert verdict.passed is None
            assert verdict.reason
        elif verdict.stage == "loop":
            assert (verdict.passed, verdict.floor_db) == (None, 0)
            assert verdict.runner
        else:
            assert verdict.passed
    if (target, scheme) not in CORNERS or scheme == "int8":  # one scheme of a target is enough
        again = {(v.part, v.stage): v for v in verification.verify_bundle(exported)}
        again = {key: v for key, v in again.items() if v.stage != "witness"}
        assert list(again) == list(verdicts)
        for key, verdict in verdicts.items():
            assert (again[key].passed, again[key].psnr_db) == (
                verdict.passed,
                pytest.approx(verdict.psnr_db, abs=0.5),
            )
    if target == "executorch" and scheme == "int8":
        assert exported.manifest.scheme.activations == "dynamic_int8"
        (unet,) = (part for part in exported.manifest.parts if part.name == "unet")
        outside = unet.notes["outside"]
        assert not any(
            k.startswith(("aten_convolution", "aten_linear", "aten_bmm")) for k in outside
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, marks=() if task == "relight" else pytest.mark.exhaustive)
        for task in TASKS
        if task != "inpaint"
    ],
)
def test_every_task_exports(task: str, atom: Path, tmp_path: Path) -> None:
    exported = exporter.export(
        options.resolve(
            target="onnx", model=atom, task=task, out=tmp_path / "b", batch=2, height=32
        )
    )
    shape = exported.parts[0].inputs[0].shape
    assert shape[0] == 2
    assert shape[2:] == (4, 8)
    assert all(verdict.passed for verdict in exported.proof if verdict.stage != "loop")


@pytest.mark.slow
def test_sdxl_exports_with_its_extra_inputs(tiny_sdxl: Path, tmp_path: Path) -> None:
    exported = exporter.export(
        options.resolve(
            target="onnx", model=tiny_sdxl, task="edit", scheme="int8", out=tmp_path / "b"
        )
    )
    names = [spec.name for spec in exported.parts[0].inputs]
    assert names == ["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"]
    assert all(verdict.passed for verdict in exported.proof if verdict.stage != "loop")


def test_every_family_fulfils_the_protocol() -> None:
    for name in models.names():
        family = models.load(name)
        assert all(callable(getattr(family, verb)) for verb in ("claims", "open"))
        assert all(isinstance(claimed, str) for claimed in family.classes)
        assert family.classes


def test_every_target_fulfils_the_protocol() -> None:
    for name in targets.names():
        target = targets.load(name)
        assert target.info.default_scheme in SCHEMES
        assert target.info.suffix.startswith(".")
        for verb in ("validate_plan", "lower", "structure"):
            assert callable(getattr(target, verb))
        assert target.runtimes
        for runtime in target.runtimes.values():
            assert any(runtime.runner())
