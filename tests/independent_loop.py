"""A picture from an ONNX bundle, written from runtime/README.md alone: no line of mtu_export.

    python tests/independent_loop.py BUNDLE OUT.png [--task NAME] [--prompt TEXT] [--image FILE]
        [--mask FILE] --noise FILE.npy [--steps N] [--ids]

With ``--ids`` the ids of the prompt are printed as JSON, a line a text encoder; no picture is made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import unicodedata
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnxruntime
import regex
from PIL import Image, ImageOps

WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
BRANCHES = {
    "none": [("prompt", "image")],
    "text": [("empty", "image"), ("prompt", "image")],
    "text_image": [("empty", "no image"), ("empty", "image"), ("prompt", "image")],
}


# ------------------------------------------------------------------- Before anything is trusted


def need(truth: object, what: str) -> None:
    if not truth:
        raise SystemExit(f"refused: {what}")


def within(folder: Path, name: str) -> Path:
    pure = PurePosixPath(name)
    need(0 < len(name) <= 255 and not pure.is_absolute() and ".." not in pure.parts, name)
    need(not set(name) & set("\\:\0"), name)
    path = folder
    for part in pure.parts:
        path = path / part
        need(not path.is_symlink(), f"{name} goes through a link")
    need(path.exists(), f"{name} is missing")
    return path


def weigh(path: Path) -> tuple[int, str]:
    """Bytes and sha256 of a file or folder."""
    if path.is_file():
        data = path.read_bytes()
        return len(data), hashlib.sha256(data).hexdigest()
    total, lines = 0, []
    for entry in path.rglob("*"):
        need(not entry.is_symlink() and (entry.is_file() or entry.is_dir()), str(entry))
        if entry.is_file():
            size, digest = weigh(entry)
            total += size
            lines.append((entry.relative_to(path).as_posix(), digest))
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(lines))
    return total, hashlib.sha256(text.encode()).hexdigest()


def no_number(text: str) -> None:
    raise SystemExit(f"refused: {text} in the manifest")


def read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    need(path.is_file() and not path.is_symlink(), "no manifest")
    need(path.stat().st_size <= 64_000_000, "the manifest is too large")
    found = json.loads(path.read_text("utf-8"), parse_constant=no_number)
    need(isinstance(found, dict), "the manifest is no object")
    need(re.fullmatch(r"1\.\d+", str(found.get("schema_version"))), "schema version")
    for row in (*found["parts"], *found.get("files", [])):
        need(weigh(within(folder, row["path"])) == (row["bytes"], row["sha256"]), row["path"])
    needed = {task["name"]: task["parts"] for task in found["tasks"]}
    names = [part["component"] for part in found["parts"]]
    need(len(set(names)) == len(names) and len(needed) == len(found["tasks"]), "twice there")
    for part in found["parts"]:
        wanted = {task for task, parts in needed.items() if part["component"] in parts}
        need(wanted and set(part["entries"]) == wanted, "entries")
    outputs = {(p["component"], o["name"]) for p in found["parts"] for o in p["outputs"]}
    text = found.get("text") or {"inputs": {}, "tokenizers": {}}
    for row in (row for rows in text["inputs"].values() for row in rows):
        need((row["component"], row["output"]) in outputs, "text from nowhere")
        need(row["component"] in text["tokenizers"], "an encoder without tokenizer")
    for table in ((found.get("loop") or {}).get("schedules") or {}).values():
        for i, row in enumerate(table["passes"]):
            late = [*row["x"][i + 1 :], *row["m"][i + 1 :]]
            need(not any(late), "a pass looks back before the start")
    return found


def tensors(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, rest, found = json.loads(data[8 : 8 + length]), data[8 + length :], {}
    for name, row in header.items():
        if name != "__metadata__":
            kind = {"F32": "<f4", "I32": "<i4"}[row["dtype"]]
            begin, end = row["data_offsets"]
            found[name] = np.frombuffer(rest[begin:end], kind).reshape(row["shape"])
            need(np.isfinite(found[name]).all(), name)
    return found


# --------------------------------------------------------------------------------------- Text


class Tokenizer:
    def __init__(self, folder: Path, row: dict[str, Any]) -> None:
        self.row = row
        self.ids: dict[str, int] = json.loads((folder / "vocab.json").read_text("utf-8"))
        lines = (folder / "merges.txt").read_text("utf-8").split("\n")
        if lines[0].startswith("#version"):
            lines = lines[1:]
        pairs = [tuple(line.rstrip("\r").split(" ")) for line in lines if line.rstrip("\r")]
        self.ranks = {pair: rank for rank, pair in enumerate(pairs)}
        plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
        others = [byte for byte in range(256) if byte not in plain]
        self.letters = {byte: chr(byte) for byte in plain}
        self.letters |= {byte: chr(256 + n) for n, byte in enumerate(others)}
        special = sorted(self._special(folder), key=len, reverse=True)
        self.special = regex.compile("(" + "|".join(map(regex.escape, special)) + ")")

    def _special(self, folder: Path) -> set[str]:
        said: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                said |= json.loads((folder / name).read_text("utf-8"))
        found = {row["content"] for row in (said.get("added_tokens_decoder") or {}).values()}
        for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
            default = "<|startoftext|>" if name == "bos_token" else "<|endoftext|>"
            token = said.get(name, default)
            found.add(token["content"] if isinstance(token, dict) else token)
        return found

    def encode(self, prompt: str) -> np.ndarray:
        found: list[int] = []
        for number, piece in enumerate(self.special.split(prompt)):
            found += [self.ids[piece]] if number % 2 else self._plain(piece)
        row, length = self.row, self.row["length"]
        ids = [row["bos"], *found[: length - 2], row["eos"]]
        ids += [row["pad"]] * (length - len(ids))
        return np.array([ids], np.int32)

    def _plain(self, text: str) -> list[int]:
        text = regex.sub(r"\p{White_Space}+", " ", unicodedata.normalize("NFC", text))
        text = "".join(letter.lower() for letter in text)
        found: list[int] = []
        for word in WORDS.findall(text):
            special = word in ("<|startoftext|>", "<|endoftext|>")
            for part in ("<|", word[2:-2], "|>") if special else (word,):
                found += [self.ids[token] for token in self._merge(part)]
        return found

    def _merge(self, word: str) -> list[str]:
        row = [self.letters[byte] for byte in word.encode("utf-8")]
        row[-1] += "</w>"
        while True:
            ranks = ((self.ranks.get(pair), i) for i, pair in enumerate(pairwise(row)))
            known = [(rank, i) for rank, i in ranks if rank is not None]
            if not known:
                return row
            _, at = min(known)
            row[at : at + 2] = [row[at] + row[at + 1]]


# ------------------------------------------------------------------------------ Image and mask


def rgb(path: Path) -> Image.Image:
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def read_image(path: Path, height: int, width: int) -> np.ndarray:
    fitted = ImageOps.fit(rgb(path), (width, height), Image.Resampling.LANCZOS)
    return (np.asarray(fitted, np.float32) / np.float32(127.5) - 1).transpose(2, 0, 1)[None]


def read_mask(path: Path, height: int, width: int) -> np.ndarray:
    pixels = np.asarray(rgb(path)).astype(np.int64)
    grey = (pixels @ [19595, 38470, 7471] + 32768) >> 16
    ih, iw = grey.shape
    wide = iw / ih > width / height
    rw, rh = (ih * width / height, ih) if wide else (iw, iw * height / width)
    across = np.floor((iw - rw) / 2 + (np.arange(width) + 0.5) * rw / width).astype(int)
    down = np.floor((ih - rh) / 2 + (np.arange(height) + 0.5) * rh / height).astype(int)
    return (grey[down][:, across] >= 128).astype(np.float32)[None, None]


def given_image(image: np.ndarray | None) -> np.ndarray:
    if image is None:
        raise SystemExit("refused: an image is needed")
    return image


def given_mask(mask: np.ndarray | None) -> np.ndarray:
    if mask is None:
        raise SystemExit("refused: a mask is needed")
    return mask


# ----------------------------------------------------------------------------------- The loop


class Bundle:
    def __init__(self, folder: Path, task: str | None) -> None:
        self.folder, self.manifest = folder, read_manifest(folder)
        need(self.manifest["target"] == "onnx", "not for ONNX Runtime")
        names = [row["name"] for row in self.manifest["tasks"]]
        self.task = self.manifest["tasks"][names.index(task) if task else 0]
        listed = [row["path"] for row in self.manifest.get("files", [])]
        name = "constants.safetensors"
        self.constants = tensors(within(folder, name)) if name in listed else {}

    def part(self, component: str) -> dict[str, Any]:
        return next(row for row in self.manifest["parts"] if row["component"] == component)

    def open(self, component: str) -> Any:
        """A function of the part's inputs by name that gives its outputs by name."""
        row = self.part(component)
        entry = row["entries"][self.task["name"]]
        need(Path(entry).name == entry, "an entry is a file in the part's folder")
        path = within(self.folder, f"{row['path']}/{entry}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        names = [spec["name"] for spec in row["outputs"]]
        return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))

    def tokenizer(self, folder: str) -> Tokenizer:
        row = next(row for row in self.manifest["tokenizers"] if row["path"] == folder)
        return Tokenizer(within(self.folder, folder), row)

    def named(self, prefix: str) -> dict[str, np.ndarray]:
        rows = self.constants.items()
        return {name[len(prefix) :]: value for name, value in rows if name.startswith(prefix)}

    def encode(self, prompt: str) -> dict[str, np.ndarray]:
        text = self.manifest["text"]
        made = {}
        for component, folder in text["tokenizers"].items():
            ids = self.tokenizer(folder).encode(prompt)
            made[component] = self.open(component)({"input_ids": ids})
        return {
            name: np.concatenate([made[row["component"]][row["output"]] for row in rows], -1)
            for name, rows in text["inputs"].items()
        }

    def conditioning(
        self, image: np.ndarray | None, mask: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        latent, size = self.manifest["latent"], self.manifest["image"]
        factor, scaling = latent["factor"], np.float32(latent["scaling_factor"])
        h, w = size["height"] // factor, size["width"] // factor
        rows: dict[str, list[np.ndarray]] = {"image": [], "no image": []}
        for entry in self.task["conditioning"]:
            kind = entry["kind"]
            if kind == "mask":
                full = given_mask(mask)[:, :, ::factor, ::factor]
            elif kind == "image":
                cells = given_image(image).reshape(1, 3, h, factor, w, factor)
                full = cells.mean((3, 5), dtype=np.float64).astype(np.float32)
            else:
                given = given_image(image)
                if kind == "masked_image_latent":
                    given = given * (given_mask(mask) < 0.5)
                (name,) = (spec["name"] for spec in self.part("vae_encoder")["inputs"])
                (full,) = self.open("vae_encoder")({name: given.astype(np.float32)}).values()
                full = full * scaling if entry.get("scaled", True) else full
            rows["image"].append(full)
            rows["no image"].append(full if kind == "mask" else np.zeros_like(full))
        empty = np.zeros((1, 0, h, w), np.float32)
        return {name: np.concatenate([empty, *found], 1) for name, found in rows.items()}

    def guide(self, outs: list[np.ndarray]) -> np.ndarray:
        guidance, wide = self.task["guidance"], [out.astype(np.float64) for out in outs]
        found = wide[0]
        if guidance["kind"] == "text":
            found = wide[0] + guidance["text"] * (wide[1] - wide[0])
        if guidance["kind"] == "text_image":
            found = wide[0] + guidance["image"] * (wide[1] - wide[0])
            found = found + guidance["text"] * (wide[2] - wide[1])
        need(np.isfinite(found).all(), "the denoiser gave what is no number")
        return found.astype(np.float32)

    def picture(
        self,
        prompt: str | None,
        image: np.ndarray | None,
        mask: np.ndarray | None,
        noise: np.ndarray,
        steps: int | None,
    ) -> np.ndarray:
        task, unet = self.task, self.part("unet")
        table = self.manifest["loop"]["schedules"][str(steps or task["steps"])]
        fixed = task["prompt"] is not None
        words = self.named(f"prompt/{task['name']}/") if fixed else self.encode(prompt or "")
        sizes = self.named("sizes/")
        texts = {"prompt": words | sizes, "empty": self.named("empty/") | sizes}
        conds = self.conditioning(image, mask)
        denoise, batch = self.open("unet"), unet["inputs"][0]["shape"][0]
        branches = BRANCHES[task["guidance"]["kind"]]
        x = (table["init_noise_sigma"] * noise.astype(np.float64)).astype(np.float32)
        past: list[tuple[np.ndarray, np.ndarray]] = []
        for row in table["passes"]:
            outs: list[np.ndarray] = []
            scaled = (row["input_scale"] * x.astype(np.float64)).astype(np.float32)
            for begin in range(0, len(branches), batch):
                some = branches[begin : begin + batch]
                full = some + [some[-1]] * (batch - len(some))
                given = {
                    spec["name"]: np.concatenate([texts[t][spec["name"]] for t, _ in full])
                    for spec in unet["inputs"][2:]
                }
                given["sample"] = np.concatenate(
                    [np.concatenate([scaled, conds[c]], 1) for _, c in full]
                )
                given["timestep"] = np.array([row["timestep"]], np.float32)
                (out,) = denoise(given).values()
                outs += [out[i : i + 1] for i in range(len(some))]
            past = [(x, self.guide(outs)), *past[:3]]
            total = np.zeros(x.shape, np.float64)
            for k, (x_k, m_k) in enumerate(past):
                total += row["x"][k] * x_k.astype(np.float64)
                total += row["m"][k] * m_k.astype(np.float64)
            x = total.astype(np.float32)
        (name,) = (spec["name"] for spec in self.part("vae_decoder")["inputs"])
        scaling = np.float32(self.manifest["latent"]["scaling_factor"])
        (found,) = self.open("vae_decoder")({name: x / scaling}).values()
        return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    for word in ("task", "prompt"):
        parser.add_argument(f"--{word}")
    for word in ("image", "mask", "noise"):
        parser.add_argument(f"--{word}", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--ids", action="store_true")
    words = parser.parse_args()
    found = Bundle(words.bundle, words.task)
    if words.ids:
        for folder in found.manifest["text"]["tokenizers"].values():
            print(json.dumps(found.tokenizer(folder).encode(words.prompt or "")[0].tolist()))
        return
    size = found.manifest["image"]["height"], found.manifest["image"]["width"]
    image = read_image(words.image, *size) if words.image else None
    mask = read_mask(words.mask, *size) if words.mask else None
    made = found.picture(words.prompt, image, mask, np.load(words.noise), words.steps)
    pixels = np.rint((np.clip(made[0].astype(np.float64), -1, 1) + 1) * 127.5)
    Image.fromarray(pixels.astype(np.uint8).transpose(1, 2, 0)).save(words.out)


if __name__ == "__main__":
    main()
