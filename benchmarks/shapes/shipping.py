"""The model that is shipped: MTU N = 4 with the chosen guidance, every part in float16."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.shapes.guidance import guided
from benchmarks.shapes.world import WORLDS, fresh
from mtu_export import checkpoint
from mtu_export.models.mtu import config as mtu_config
from mtu_export.models.mtu.model import MTUModel
from mtu_export.training import Recipe

MODEL, SHIPPED = "mtu-n4", "shipped"
MOST_BYTES = 24_000_000
LICENCE = Path(__file__).parents[2] / "LICENSE"


def ship(root: Path) -> Path:
    """``home/shipped``, made of the trained model; raises ``SystemExit`` where it is too large.

    One that is there and is the same stays, with its card.
    """
    out, private = root / SHIPPED, root / f".{SHIPPED}.{os.getpid()}.partial"
    shutil.rmtree(private, ignore_errors=True)
    shutil.copytree(root / MODEL, private)
    for path in private.rglob("*.safetensors"):
        _halve(path)
    shutil.copyfile(LICENCE, private / LICENCE.name)
    path = private / "unet" / "config.json"
    config = checkpoint.read_json(path)
    tasks = mtu_config.tasks(config)
    config["tasks"] = [guided(task, root).to_json() for task in tasks]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    size = sum(one.stat().st_size for one in private.rglob("*") if one.is_file())
    if size > MOST_BYTES:
        raise SystemExit(f"the model has {size:,} bytes, at most {MOST_BYTES:,} are shipped")
    if _same(private, out):
        shutil.rmtree(private)
        return out
    shutil.rmtree(out, ignore_errors=True)
    private.replace(out)
    return out


def _same(built: Path, there: Path) -> bool:
    """Whether ``there`` has every file of ``made`` with its bytes."""
    names = [path.relative_to(built) for path in built.rglob("*") if path.is_file()]
    return all(
        (there / name).is_file() and (there / name).read_bytes() == (built / name).read_bytes()
        for name in names
    )


def _halve(path: Path) -> None:
    with safe_open(path, "pt") as file:
        metadata: dict[str, Any] = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, value in tensors.items():
        tensors[name] = value.half() if value.dtype == torch.float32 else value
        if not bool(torch.isfinite(tensors[name]).all()):
            raise SystemExit(f"{path}: {name} does not fit float16")
    mode = path.stat().st_mode
    save_file(tensors, path, metadata)
    path.chmod(mode)


# ---------------------------------------------------------------------------------------- card


def card(size: str, root: Path, recipes: Mapping[str, Recipe], results: Path) -> str:
    """The model card: recipe, data, seed, hardware, hours, figures."""
    gates = read_gates(root)
    table = json.loads((results / f"shapes_{size}.json").read_text("utf-8"))["torch"]["MTU N=4"]
    kept, every = fresh(WORLDS[size])
    layers = MTUModel(root / SHIPPED).expert_weights().values()
    mixes = [mix for tasks in layers for mix in tasks]
    mixed = [weight for mix in mixes for weight in mix]
    hours = {name: _hours(recipe) for name, recipe in recipes.items()}
    whole = sum(hours.values()) + (gates["vae_seconds"] + gates["text_seconds"]) / 3600
    trained = {"all": "every weight", "mtu": "experts, routers, norms, input convolutions"}
    runs = "\n".join(
        f"| {name} | {', '.join(recipe.tasks)} | {trained[recipe.train]} "
        f"| {recipe.steps} x {recipe.samples_a_step} | {hours[name]:.2f} |"
        for name, recipe in recipes.items()
    )
    figures = "\n".join(
        f"| {task} | {name} | {_shown(name, values)} |"
        for task, measures in table.items()
        for name, values in measures.items()
    )
    return (
        "# A small world of shapes: MTU, N = 4\n\n"
        "A checkpoint of four tasks that this project trained from nothing, to show and to test "
        "exports with. Pictures are drawn by code: coloured shapes with size, place and "
        "background. It knows nothing else.\n\n"
        f"- Made by `python -m benchmarks.shapes {size}`; configs in "
        f"`benchmarks/shapes/configs/{size}`. Seed {recipes[MODEL].seed}.\n"
        f"- Data: `benchmarks/shapes`, drawn when it is needed. {kept} of the {every} combinations "
        "of colour, shape, size and place were never trained on; the figures are of cases that "
        "hold one.\n"
        f"- Hardware: {_processor()}; {whole:.1f} hours of training in all.\n"
        f"- Gates: {gates_said(gates)}.\n"
        f"- Expert weights, over layers and tasks: {min(mixed):.2f} to {max(mixed):.2f} (even: "
        f"{1 / len(mixes[0]):.2f}).\n"
        "- Weights are float16. License: that of the project.\n\n"
        "| run | tasks | trained | steps x samples a task | hours |\n|---|---|---|---|---|\n"
        f"{runs}\n\n"
        "| task | measure | mean and 95 % interval |\n|---|---|---|\n"
        f"{figures}\n"
    )


def read_gates(root: Path) -> dict[str, Any]:
    """What the parts reached before a UNet was trained on them."""
    return json.loads((root / "gates.json").read_text("utf-8"))


def gates_said(gates: Mapping[str, Any]) -> str:
    """The gates' figures in words."""
    return (
        f"VAE {gates['vae_psnr_db']} dB on held-out pictures; pictures read right "
        f"{gates['read_true']:.2%}, through the VAE {gates['read_through_vae']:.2%}; words "
        f"read out of the text encoder, the least {gates['probe_least']:.2%}"
    )


def _shown(name: str, values: Sequence[float]) -> str:
    scale, unit = (1, "dB") if "PSNR" in name else (100, "%")
    mean, low, high = (f"{scale * value:.1f}" for value in values)
    return f"{mean} {unit} ({low} to {high})"


def _hours(recipe: Recipe) -> float:
    lines = (recipe.state_folder() / "log.csv").read_text("utf-8").splitlines()
    place = lines[0].split(",").index("seconds")
    return float(lines[-1].split(",")[place]) / 3600


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"
