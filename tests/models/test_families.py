"""Families are found by what they claim, and nothing else knows them: a toy goes all ways."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import mtu_export
from mtu_export import models
from mtu_export.bundle import images
from mtu_export.exporter.options import resolve
from mtu_export.spec import CheckpointError
from tests.support import families
from tests.support.families import translator


@pytest.fixture
def translators(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkpoint of the toy family, whose folder is on the path of families."""
    monkeypatch.setattr(models, "__path__", [*models.__path__, *families.__path__])
    folder = tmp_path / "checkpoint"
    (folder / "net").mkdir(parents=True)
    (folder / "net" / "config.json").write_text(json.dumps({"_class_name": translator.CLASS}))
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Tanh(), torch.nn.Conv2d(8, 3, 1))
    save_file(net.state_dict(), folder / "net" / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("target", "scheme"), [("reference", "fp32"), ("onnx", "int8")])
def test_a_toy_family_exports_verifies_and_runs(
    translators: Path, tmp_path: Path, target: str, scheme: str
) -> None:
    out = tmp_path / "bundle"
    plan = resolve(model=translators, target=target, scheme=scheme, out=out)
    bundle = mtu_export.export(plan)
    assert [part.name for part in bundle.parts] == ["net"]
    assert bundle.manifest.loop is None
    assert bundle.manifest.latent is None
    assert all(verdict.passed for verdict in mtu_export.verify(out))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    picture = mtu_export.run(out, image=tmp_path / "in.png").image
    live = models.open(translators).load("net").module.eval()
    expected = live(torch.from_numpy(images.fit(Image.open(tmp_path / "in.png"), 64, 64)))
    np.testing.assert_allclose(
        picture, expected.detach().numpy(), atol=2e-2 if scheme == "int8" else 1e-5
    )


def test_what_no_family_claims_is_refused_with_what_they_do(tmp_path: Path) -> None:
    index = {"_class_name": "FluxPipeline"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"'FluxPipeline' \(planned\); legal: .*MTUUNet2D"):
        models.open(tmp_path)


def test_what_two_families_claim_is_refused(
    translators: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.load("sd"), "claims", lambda folder: True, raising=False)
    with pytest.raises(CheckpointError, match="claimed by several families: sd, translator"):
        models.open(translators)
