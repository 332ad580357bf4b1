"""A picture of an ONNX bundle by optimum-onnx; runs in an environment without mtu_export.

    build/optimum/bin/python benchmarks/optimum_onnx.py BUNDLE REQUEST.json NOISE.npy OUT

``REQUEST.json`` holds ``prompt``, ``steps``, ``guidance``, ``height`` and ``width``; ``NOISE.npy``
normal noise [1, C, h, w]. OUT gets ``latent.npy`` [1, C, h, w], ``image.npy`` [1, 3, H, W] within
−1..1, ``image.png`` and ``versions.json``; ``onnx_in_optimum.py`` compares them with ours.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optimum.onnxruntime import ORTStableDiffusionPipeline, ORTStableDiffusionXLPipeline
from PIL import Image

PIPELINES = {
    "StableDiffusionPipeline": ORTStableDiffusionPipeline,
    "StableDiffusionXLPipeline": ORTStableDiffusionXLPipeline,
}
PACKAGES = ("optimum-onnx", "optimum", "diffusers", "transformers", "onnxruntime", "torch")


def main() -> None:
    """Open the bundle, run its loop, keep what it made."""
    bundle, request, noise, out = map(Path, sys.argv[1:])
    index = json.loads((bundle / "model_index.json").read_text("utf-8"))
    pipe = PIPELINES[index["_class_name"]].from_pretrained(bundle)
    fields = json.loads(request.read_text("utf-8"))
    last: list[np.ndarray] = []

    def keep(_pipe: Any, _step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        last[:] = [tensors["latents"].numpy().copy()]
        return tensors

    result = pipe(
        fields["prompt"],
        num_inference_steps=fields["steps"],
        guidance_scale=fields["guidance"],
        height=fields["height"],
        width=fields["width"],
        latents=torch.from_numpy(np.load(noise)),
        callback_on_step_end=keep,
        output_type="np",
    ).images
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "latent.npy", last[0])
    np.save(out / "image.npy", result.transpose(0, 3, 1, 2) * 2 - 1)
    Image.fromarray((result[0] * 255).round().astype(np.uint8)).save(out / "image.png")
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions["scheduler"] = type(pipe.scheduler).__name__
    (out / "versions.json").write_text(json.dumps(versions), "utf-8")


if __name__ == "__main__":
    main()
