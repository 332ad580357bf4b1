"""Make runtime/testdata: a whole bundle of random weights, a request, and what comes of it.

    python benchmarks/testdata.py

Everything is seeded; but for the date and the versions in the manifest, and the last bits of
floating point, the same comes out everywhere. README.md in runtime/ says what each file is for.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from mtu_export import bundle, exporter
from mtu_export.authoring import upcycle
from mtu_export.bundle import denoising, images, runner, tokenizer
from mtu_export.exporter import options

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
    "tokens": "tokens.json",
}
TEXTS = (
    "",
    "a photo of a red circle on a blue table",
    PROMPT,
    "  A  photo\tof\na RED\u00a0cat ",
    "the cat's dog'll, it'S 12 ½ ²",
    "cafe\u0301 café İstanbul ß ΟΔΟΣ \u1e9b\u0323",
    "<|endoftext|> <|startoftext|>x<|ENDOFTEXT|>! !wow! ''s !!",
    "中文 日本語 한국어 العربية हिन्दी",
    "👩‍👩‍👧 \u200b\ufeff \x00\x01 \x85 \u2028 \x1c",
    "photo " * 75,
    "photo " * 75 + "of a Red CAFÉ",
    "x" * 300,
)


def drawing() -> Image.Image:
    """A picture [50 x 61] with waves of colour and a clear corner, lying on its side."""
    down, across = np.mgrid[0:61, 0:50]
    waves = [127.5 + 127.5 * np.sin(a * down + b * across) for a, b in ((0.1, 0.02), (0.03, 0.13))]
    alpha = np.where(down + across < 30, 8.0 * (down + across), 255.0)
    return Image.fromarray(
        np.stack([*waves, 4.0 * down, np.clip(alpha, 0, 255)], -1).astype(np.uint8)
    )


def make_bundle(out: Path) -> bundle.Bundle:
    """Export `edit` of a random checkpoint, int8, with tables for 4 and 20 steps."""
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "tiny-half"
        upcycle.write_random("tiny-half", source, tasks=["edit"], seed=SEED)
        settings: dict[str, Any] = {
            "target": "onnx",
            "task": "edit",
            "scheme": "int8",
            "seed": SEED,
        }
        settings |= {"height": HEIGHT, "width": WIDTH, "bake_steps": (4, 20), "force": True}
        return exporter.export(options.resolve(model=source, out=out, **settings))


def make_request(exported: bundle.Bundle) -> None:
    """Write the request, its picture and the arrays on the way."""
    loop = runner.open_loop(exported)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown after a quarter turn clockwise
    drawing().save(HERE / FILES["image"], exif=exif)
    request = denoising.Request(
        prompt=PROMPT,
        noise=denoising.noise((1, *loop.latent), SEED),
        steps=4,
        image=images.fit(images.read(HERE / FILES["image"]), WIDTH, HEIGHT),
    )
    assert request.image is not None
    latents, picture = runner.generate(loop, request)
    clip = tokenizer.load(exported.folder / "tokenizer")
    tensors = {"noise": request.noise, "image": request.image, "ids": clip.encode(PROMPT)[0]}
    tensors |= {f"latents/{i}": x for i, x in enumerate(latents)}
    save_file({**tensors, "picture": picture}, HERE / FILES["tensors"])
    np.save(HERE / FILES["noise"], request.noise)
    images.save(picture, HERE / FILES["picture"])
    texts = [(text, *clip.encode(text)) for text in TEXTS]
    tokens = [{"text": text, "ids": ids[0].tolist(), "cut": cut} for text, ids, cut in texts]
    dump("tokens.json", tokens)
    request_ = {"task": loop.task.name, "prompt": PROMPT, "steps": request.steps, "seed": SEED}
    request_ |= {"runner": loop.runner}
    dump("request.json", {**FILES, **request_})


def dump(name: str, document: dict[str, Any] | list[Any]) -> None:
    """Write JSON with one entry a line, ASCII alone."""
    if isinstance(document, dict):
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items()]
        text = "{\n" + ",\n".join(lines) + "\n}\n"
    else:
        text = "[\n" + ",\n".join(map(json.dumps, document)) + "\n]\n"
    (HERE / name).write_text(text, "utf-8")


def main() -> None:
    """Make all of it anew."""
    if HERE.is_dir():
        shutil.rmtree(HERE)
    HERE.mkdir(parents=True)
    make_request(make_bundle(HERE / NAME))
    print(f"{sum(path.stat().st_size for path in HERE.rglob('*') if path.is_file()):,} bytes")


if __name__ == "__main__":
    main()
