"""The parts of a size, in order, each with its gate: VAE, text encoder; and a UNet not yet trained.

They lie in one diffusers pipeline folder that every recipe of that size begins with.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from benchmarks.shapes import checker, text, vae
from benchmarks.shapes.cases import case
from benchmarks.shapes.world import WORLDS, World, draw
from mtu_export import checkpoint
from mtu_export.bundle import source_tokenizer
from mtu_export.testing.architectures import STOCK_PARTS

VAE_DB, READ_SHARE, PROBE_SHARE = 33.0, 0.99, 0.99
"""Gates: held-out PSNR of the VAE, pictures read right, prompts' words read right."""


def build(name: str, config: Path, root: Path, *, gated: bool = True) -> Path:
    """The pipeline folder ``home/parts``; figures of the gates go to ``home/gates.json``.

    Raises ``SystemExit`` where a gate is not passed, unless ``gated`` is off (a rehearsal).
    """
    settings = tomllib.loads(config.read_text("utf-8"))
    world, folder, gates = WORLDS[name], root / "parts", root / "gates.json"
    if (folder / "model_index.json").is_file() and gates.is_file():
        return folder
    coder, vae_s = vae.train(world, settings["vae"], root)
    record: dict[str, Any] = {
        "vae_psnr_db": round(vae.psnr(coder, world), 2),
        "vae_seconds": round(vae_s),
        "vae_scaling_factor": coder.config["scaling_factor"],
        **reading(world, coder),
    }
    _gate(record, "vae_psnr_db", VAE_DB, gated)
    for key in ("read_true", "read_through_vae"):
        _gate(record, key, READ_SHARE, gated)
    private = root / "tokenizer"
    shutil.rmtree(private, ignore_errors=True)
    text.write_tokenizer(world, private, settings["text"]["length"])
    encoder, encoder_config, text_s = text.train(world, settings["text"], private, root)
    tokenizer = source_tokenizer.read(private)
    record["probe"] = text.probe(world, encoder, tokenizer)
    record["text_seconds"] = round(text_s)
    record["probe_least"] = min(record["probe"].values())
    _gate(record, "probe_least", PROBE_SHARE, gated)
    _write(folder, coder, encoder.state_dict(), encoder_config, private, settings["unet"], world)
    gates.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return folder


def _gate(gates: Mapping[str, Any], key: str, least: float, gated: bool) -> None:
    print(f"{key}: {gates[key]:g} (gate {least:g})", flush=True)
    if gated and not gates[key] >= least:
        raise SystemExit(f"gate {key} is not passed: {gates[key]:g}, at least {least:g} is needed")


def reading(world: World, coder: Any, count: int = 500) -> dict[str, float]:
    """Shares of held-out pictures that the checker reads right: true ones, and through the VAE."""
    tasks = ("t2i", "edit", "inpaint")
    scenes = [case(world, task, "test", i).after for task in tasks for i in range(count)]
    pictures = draw(world, scenes)
    through = []
    with torch.no_grad():
        for batch in pictures.split(128):
            decoded = coder.decode(coder.encode(batch).latent_dist.mode()).sample
            through.append(decoded.clamp(-1, 1))
    shares = {}
    for name, seen in (("read_true", pictures), ("read_through_vae", torch.cat(through))):
        right = checker.right(checker.read(world, seen), scenes)
        shares[name] = sum(right) / len(right)
    return shares


def _write(
    folder: Path,
    coder: Any,
    encoder: Mapping[str, torch.Tensor],
    encoder_config: Mapping[str, Any],
    tokenizer: Path,
    unet: Mapping[str, Any],
    world: World,
) -> None:
    private = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(private, ignore_errors=True)
    private.mkdir(parents=True)
    coder.to(memory_format=torch.contiguous_format).save_pretrained(private / "vae")
    card = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        **encoder_config,
    }
    tensors = ((n, v) for n, v in encoder.items() if n.startswith("text_model."))
    checkpoint.write(private / "text_encoder", card, tensors, stem=checkpoint.TEXT_WEIGHTS)
    shutil.copytree(tokenizer, private / "tokenizer")
    scheduler = STOCK_PARTS["sd15"]["scheduler"]
    (private / "scheduler").mkdir()
    (private / "scheduler" / "scheduler_config.json").write_text(
        json.dumps(scheduler, indent=2, sort_keys=True) + "\n", "utf-8"
    )
    torch.manual_seed(unet["seed"])
    model = UNet2DConditionModel(
        sample_size=world.side // 4,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=encoder_config["hidden_size"],
        **{key: value for key, value in unet.items() if key != "seed"},
    )
    model.save_pretrained(private / "unet")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    (private / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    private.replace(folder)
