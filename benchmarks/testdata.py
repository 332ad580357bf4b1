"""Make runtime/testdata: a bundle of random weights, a request and its result, shared vectors.

    python -m benchmarks.testdata [--vectors]

With ``--vectors`` the bundle and its request stay as they are, and the vectors are made anew.

Everything is seeded; but for the date and the versions in the manifest, and the last bits of
floating point, the same comes out everywhere. README.md in runtime/ says what each file is for.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from benchmarks.vectors import fits, hostile, loops, tokens
from mtu_export import bundle, exporter
from mtu_export.authoring import upcycle
from mtu_export.bundle import images, runner, sampler, tokenizer
from mtu_export.bundle.evaluation import Request
from mtu_export.exporter import options
from mtu_export.models.mtu import presets
from mtu_export.testing.noise import noise_vectors

HERE = Path(__file__).parent.parent / "runtime" / "testdata"
NAME = "edit-onnx-int8"
SEED = 7
HEIGHT, WIDTH = 32, 48
PROMPT = "Make the small GREEN square yellow, and remove the café's shadow!"
FILES = {
    "bundle": NAME,
    "image": "input.png",
    "noise": "noise.npy",
    "picture": "expected.png",
    "tensors": "expected.safetensors",
}


def drawing() -> Image.Image:
    """A picture [50 x 61] with waves of colour and a clear corner, lying on its side."""
    down, across = np.mgrid[0:61, 0:50]
    waves = [127.5 + 127.5 * np.sin(a * down + b * across) for a, b in ((0.1, 0.02), (0.03, 0.13))]
    alpha = np.where(down + across < 30, 8.0 * (down + across), 255.0)
    return Image.fromarray(
        np.stack([*waves, 4.0 * down, np.clip(alpha, 0, 255)], -1).astype(np.uint8)
    )


def make_bundle(out: Path) -> bundle.Bundle:
    """Export `edit` of a random checkpoint, int8, with tables for 4 and 6 steps."""
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "tiny-half"
        task = Path(temporary) / "edit.json"
        edit = presets.TASKS["edit"]["sd"].to_json()
        task.write_text(json.dumps({**edit, "steps": 4}), "utf-8")
        upcycle.write_random("tiny-half", source, tasks=[str(task)], seed=SEED)
        settings: dict[str, Any] = {
            "target": "onnx",
            "task": "edit",
            "scheme": "int8",
            "seed": SEED,
        }
        settings |= {"height": HEIGHT, "width": WIDTH, "bake_steps": (4, 6), "force": True}
        return exporter.export(options.resolve(model=source, out=out, **settings))


def make_request(exported: bundle.Bundle) -> None:
    """Write the request, its picture and the arrays on the way."""
    loop = runner.open_loop(exported)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown after a quarter turn clockwise
    drawing().save(HERE / FILES["image"], exif=exif)
    assert loop.latent is not None
    fitted = images.fit(images.read(HERE / FILES["image"]), WIDTH, HEIGHT)
    request = Request(
        prompt=PROMPT,
        noise=sampler.noise((1, *loop.latent), SEED),
        steps=4,
        pictures={"image": fitted},
    )
    assert request.noise is not None
    latents, picture = runner.generate(loop, request)
    clip = tokenizer.load(exported.folder / "tokenizer")
    tensors = {"noise": request.noise, "image": fitted, "ids": clip.encode(PROMPT)[0]}
    tensors |= {f"latents/{i}": x for i, x in enumerate(latents)}
    save_file({**tensors, "picture": picture}, HERE / FILES["tensors"])
    np.save(HERE / FILES["noise"], request.noise)
    images.save(picture, HERE / FILES["picture"])
    request_ = {"task": loop.task.name, "prompt": PROMPT, "steps": request.steps, "seed": SEED}
    request_ |= {"runner": loop.runner}
    dump("request.json", {**FILES, **request_})


def make_vectors() -> None:
    """Write what readers in every language are compared with."""
    folder = HERE / NAME
    dump("tokens.json", tokens.make(folder / "tokenizer", PROMPT))
    dump("noise.json", noise_vectors())
    dump("hostile.json", hostile.make(folder))
    cases, tensors = loops.make()
    dump("loops.json", cases)
    save_file(tensors, HERE / "loops.safetensors")
    listed, expected, files = fits.make()
    dump("fits.json", listed)
    save_file(expected, HERE / "fits.safetensors")
    (HERE / "fits").mkdir(exist_ok=True)
    for name, array in files.items():
        (HERE / name).write_bytes(array.tobytes())


def dump(name: str, document: dict[str, Any] | list[Any]) -> None:
    """Write JSON with one entry a line, ASCII alone."""
    (HERE / name).write_text(lines(document) + "\n", "utf-8")


def lines(document: Any) -> str:
    """JSON with a line for each entry, and for each object of a list in it."""

    def text(value: Any) -> str:
        nested = isinstance(value, list) and value and isinstance(value[0], dict)
        return lines(value) if nested else json.dumps(value, separators=(",", ":"))

    if isinstance(document, dict):
        entries = [f"{json.dumps(key)}: {text(value)}" for key, value in document.items()]
        return "{\n" + ",\n".join(entries) + "\n}"
    entries = [json.dumps(value, separators=(",", ":")) for value in document]
    return "[\n" + ",\n".join(entries) + "\n]"


def main() -> None:
    """Make all of it anew, or the vectors alone."""
    if "--vectors" not in sys.argv[1:]:
        if HERE.is_dir():
            shutil.rmtree(HERE)
        HERE.mkdir(parents=True)
        make_request(make_bundle(HERE / NAME))
    make_vectors()
    print(f"{sum(path.stat().st_size for path in HERE.rglob('*') if path.is_file()):,} bytes")


if __name__ == "__main__":
    main()
