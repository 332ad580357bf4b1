"""The model card says what was folded in."""

from __future__ import annotations

import json
from pathlib import Path

from mtu_export.bundle.card import card
from mtu_export.bundle.manifest import LoraRecord, Manifest

MANIFEST = Path(__file__).parents[2] / "runtime" / "testdata" / "edit-onnx-int8" / "manifest.json"


def test_the_loras_stand_in_the_card() -> None:
    manifest = Manifest.model_validate_json(MANIFEST.read_text("utf-8"))
    assert "LoRA" not in card(manifest)
    first = {"name": "a.safetensors", "sha256": "0" * 64, "scale": 0.5, "layers": {"unet": 3}}
    old = LoraRecord(**first, unused={})
    new = LoraRecord(
        **{**first, "layers": {"unet": 3, "text_encoder": 2}},
        unused={},
        adapter="oil",
        blocks={"mid": 1.2},
        forms={"LoHa": 4, "DoRA": 1},
    )
    source = manifest.source.model_copy(update={"loras": (old, new)})
    text = card(manifest.model_copy(update={"source": source}))
    assert f"- `a.safetensors`, scale 0.5; layers: 3 of unet; sha256 `{'0' * 64}`\n" in text
    assert (
        "- `a.safetensors` (oil), scale 0.5, mid 1.2; layers: 3 of unet, 2 of text_encoder "
        "(4 LoHa, 1 DoRA); sha256 `"
    ) in text
    assert json.loads(old.model_dump_json(exclude_unset=True)) == {**first, "unused": {}}
