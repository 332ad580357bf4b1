"""Make a picture of an ONNX bundle, from runtime/README.md alone.

Written by somebody who had that page and testdata/ and never saw mtu_export.

    python tests/support/independent_loop.py BUNDLE [--task NAME] [--prompt TEXT] [--image FILE]
        [--mask FILE] --noise FILE.npy [--steps N] -o OUT.png
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import regex
from PIL import Image, ImageOps

Json = dict[str, Any]
Array = np.ndarray
Tensors = dict[str, Array]
Session = ort.InferenceSession
Maybe = np.ndarray | None
Branch = tuple[Tensors, list[Array]]  # text inputs, conditioning
COMPONENTS = {"text_encoder", "text_encoder_2", "vae_encoder", "unet", "vae_decoder"}
KINDS = {"image_latent", "masked_image_latent", "mask", "image"}
BRANCHES = {  # guidance kind -> (text, conditioning) of each branch
    "none": [("prompt", "image")],
    "text": [("empty", "image"), ("prompt", "image")],
    "text_image": [("empty", "no image"), ("empty", "image"), ("prompt", "image")],
}
WORD = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\p{White_Space}\p{L}\p{N}]+"
)
WORD_CHARACTER = r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]"
WHITE_SPACE = "".join(chr(i) for i in range(0x3001) if regex.match(r"\p{White_Space}", chr(i)))
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
REST = [b for b in range(256) if b not in PRINTABLE]
LETTERS = {b: chr(b) for b in PRINTABLE} | {b: chr(256 + i) for i, b in enumerate(REST)}


def need(good: bool, why: str) -> None:
    if not good:
        raise ValueError(why)


def read_json(text: bytes, what: str) -> Json:
    """A strict JSON object: no NaN, no Infinity, no 1e999, no key twice."""

    def number(text: str) -> float:
        need(math.isfinite(float(text)), f"{what}: {text} is not finite")
        return float(text)

    def once(pairs: list[tuple[str, Any]]) -> Json:
        need(len(dict(pairs)) == len(pairs), f"{what}: a key appears twice")
        return dict(pairs)

    hooks: Json = {"parse_constant": number, "parse_float": number, "object_pairs_hook": once}
    data = json.loads(text.decode("utf-8"), **hooks)
    need(isinstance(data, dict), f"{what}: not an object")
    return data


def safe_path(root: Path, name: str) -> Path:
    path, parts = root, name.split("/")
    need(len(name) <= 255 and not set(name) & set("\\:\0"), f"path {name!r}: forbidden")
    need(not {"", ".", ".."} & set(parts), f"path {name!r}: a forbidden step")
    need(not any(map(is_macos, parts)), f"path {name!r}: of macOS")
    for part in parts:
        path = path / part
        need(path.exists() and not path.is_symlink(), f"path {name!r}: no file, or a link")
    return path


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def is_macos(name: str) -> bool:
    return name == ".DS_Store" or name.startswith("._")


def measure(path: Path) -> tuple[int, str]:
    """(bytes, sha256) of a file or folder, by check 6."""
    if not path.is_dir():
        return path.stat().st_size, sha256(path)
    below = [p for p in path.rglob("*") if p.is_symlink() or not p.is_dir()]
    odd = [p for p in below if p.is_symlink() or not p.is_file()]
    need(not odd, f"{path}: holds more than plain files and folders")
    files = sorted((p.relative_to(path).as_posix(), p) for p in below if not is_macos(p.name))
    text = "".join(f"{sha256(p)}  {name}\n" for name, p in files)
    return sum(p.stat().st_size for _, p in files), hashlib.sha256(text.encode()).hexdigest()


def read_safetensors(path: Path) -> Tensors:
    """The tensors of a safetensors file (F32 and I32), offsets and finiteness checked."""
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    need(n <= 4_000_000 and 8 + n <= len(raw), f"{path}: header too long")
    header, data, tensors = read_json(raw[8 : 8 + n], str(path)), raw[8 + n :], {}
    header.pop("__metadata__", None)
    for name, header_ in header.items():
        (begin, end), shape = header_["data_offsets"], header_["shape"]
        need(header_["dtype"] in ("F32", "I32"), f"{path}: dtype of {name}")
        need(all(isinstance(d, int) and d >= 0 for d in shape), f"{path}: shape of {name}")
        fits = 0 <= begin <= end <= len(data) and end - begin == 4 * math.prod(shape)
        need(fits, f"{path}: offsets of {name}")
        dtype = "<f4" if header_["dtype"] == "F32" else "<i4"
        tensors[name] = np.frombuffer(data[begin:end], dtype).reshape(shape)
        need(bool(np.isfinite(tensors[name]).all()), f"{path}: {name} is not finite")
    return tensors


def check_form(m: Json) -> None:
    """Checks 3 and 9 by hand, as far as the loop needs them."""
    for task in m["tasks"]:
        need(task["guidance"]["kind"] in BRANCHES, f"{task['name']}: guidance")
        need({c["kind"] for c in task["conditioning"]} <= KINDS, f"{task['name']}: conditioning")
    for name, table in ((m["loop"] or {}).get("schedules") or {}).items():
        for i, p in enumerate(table["passes"]):
            need(len(p["x"]) == len(p["m"]) == 4, f"schedule {name}: coefficients")
            need(not any(p["x"][i + 1 :] + p["m"][i + 1 :]), f"schedule {name}: looks back")


def check_names(m: Json, folders: dict[str, Path]) -> None:
    tasks = {t["name"]: t for t in m["tasks"]}
    parts = {p["component"]: p for p in m["parts"]}
    need(len(tasks) == len(m["tasks"]), "a task appears twice")
    need(len(parts) == len(m["parts"]) and set(parts) <= COMPONENTS, "components")
    for name, part in parts.items():
        users = {t for t, row in tasks.items() if name in row["parts"]}
        need(bool(users) and set(part["entries"]) == users, f"{name}: entries")
        for entry in part["entries"].values():
            plain = regex.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", entry) is not None
            fine = plain and safe_path(folders[part["path"]], entry).is_file()
            need(fine, f"{name}: entry {entry!r}")
    if m["text"] is not None:
        listed = {t["path"] for t in m["tokenizers"]} & {f["path"] for f in m["files"]}
        for row in (r for rows in m["text"]["inputs"].values() for r in rows):
            outputs = parts.get(row["component"], {"outputs": []})["outputs"]
            need(row["output"] in {o["name"] for o in outputs}, f"text input {row}")
            folder = m["text"]["tokenizers"].get(row["component"])
            need(folder in listed, f"no checked tokenizer for {row['component']}")


def check_paths(paths: list[str]) -> None:
    """Check 5: none appears twice or lies within another."""
    need(len(set(paths)) == len(paths) <= 80, "a path appears twice, or too many")
    inner = [p for p in paths if any(p.startswith(f"{outer}/") for outer in paths)]
    need(not inner, f"{inner} lie within others")


def trusted(root: Path) -> Json:
    """The manifest of a bundle that passed the checks."""
    path = root / "manifest.json"
    try:
        fine = path.is_file() and not path.is_symlink() and path.stat().st_size <= 4_000_000
        need(fine, "manifest.json")
        m = read_json(path.read_bytes(), "manifest.json")
        need(regex.fullmatch(r"1\.[0-9]+", m["schema_version"]) is not None, "version")
        need(m["target"] == "onnx", f"target {m['target']}: this script runs ONNX only")
        check_form(m)
        records = m["parts"] + m["files"]
        check_paths([r["path"] for r in records])
        names = [r["path"] for r in records + m["tokenizers"]]
        names += (m["text"] or {"tokenizers": {}})["tokenizers"].values()
        folders = {name: safe_path(root, name) for name in names}
        for record in records:
            measured = measure(folders[record["path"]])
            need(
                measured == (record["bytes"], record["sha256"]),
                f"{record['path']}: not what was exported",
            )
        check_names(m, folders)
        for name in (n for n in folders if n.endswith(".safetensors")):
            read_safetensors(folders[name])
    except (LookupError, TypeError, AttributeError, OSError, ValueError) as e:
        raise SystemExit(f"refused: {type(e).__name__}: {e}") from e
    return m


class Tokenizer:
    def __init__(self, folder: Path, record: Json) -> None:
        self.record = record
        self.vocab = read_json((folder / "vocab.json").read_bytes(), "vocab.json")
        lines = (folder / "merges.txt").read_bytes().decode().replace("\r\n", "\n").split("\n")
        pairs = filter(None, lines[lines[0].startswith("#version") :])
        self.ranks = {tuple(s.split(" ")): i for i, s in enumerate(pairs)}
        path = folder / "tokenizer.json"
        whole = read_json(path.read_bytes(), path.name) if path.exists() else {}
        if whole.get("truncation") is None:  # a bundle of schema 1.2 or older
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            special = self._special(folder).items()
            self.added = [{"content": token, "id": number, **flags} for token, number in special]
        else:
            self.added = whole["added_tokens"]
            ids = {
                whole["post_processor"][k][1]: record[v]
                for k, v in (("cls", "bos"), ("sep", "eos"))
            }
            need(all(a == b for a, b in ids.items()), "tokenizer.json: bos or eos")
            need(whole["padding"]["pad_id"] == record["pad"], "tokenizer.json: pad")

    def _special(self, folder: Path) -> dict[str, int]:
        files = [folder / n for n in ("tokenizer_config.json", "special_tokens_map.json")]
        config, stock = (read_json(f.read_bytes(), f.name) if f.exists() else {} for f in files)
        special = {}
        for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
            default = "<|startoftext|>" if key == "bos_token" else "<|endoftext|>"
            token = {**stock, **config}.get(key) or default
            token = token["content"] if isinstance(token, dict) else token
            special[token] = self.vocab[token]
            need(special[token] == self.record.get(key[:3], special[token]), f"the id of {key}")
        added = config.get("added_tokens_decoder") or {}
        return special | {entry["content"]: int(number) for number, entry in added.items()}

    def _merge(self, word: str) -> list[str]:
        """Steps 4 and 5 for one word."""
        tokens = [LETTERS[b] for b in word.encode()]
        tokens[-1] += "</w>"
        while pairs := [p for p in pairwise(tokens) if p in self.ranks]:
            best = min(pairs, key=self.ranks.__getitem__)
            at = next(i for i in range(len(tokens)) if tuple(tokens[i : i + 2]) == best)
            tokens[at : at + 2] = ["".join(best)]
        return tokens

    def _split(self, text: str, *, normalized: bool) -> Iterator[tuple[int | None, str]]:
        """The added tokens of one round as (id, ""), what lies between as (None, text)."""
        tokens = {}
        for token in self.added:
            if token["normalized"] == normalized:
                content = self._normal(token["content"]) if normalized else token["content"]
                tokens.setdefault(content, token)
        longest_first = map(regex.escape, sorted(tokens, key=len, reverse=True))
        pattern = regex.compile("|".join(longest_first) or r"(?!)")
        done = 0
        for match in pattern.finditer(text):
            token, (begin, end) = tokens[match.group()], match.span()
            touched = begin and regex.match(WORD_CHARACTER, text[begin - 1])
            touched = touched or regex.match(WORD_CHARACTER, text[end : end + 1])
            if token["single_word"] and touched:
                continue
            if token["lstrip"]:
                begin = max(len(text[:begin].rstrip(WHITE_SPACE)), done)
            if token["rstrip"]:
                end = len(text) - len(text[end:].lstrip(WHITE_SPACE))
            yield None, text[done:begin]
            yield token["id"], ""
            done = end
        yield None, text[done:]

    def _normal(self, text: str) -> str:
        """Step 2."""
        text = regex.sub(r"\p{White_Space}+", " ", unicodedata.normalize("NFC", text))
        return "".join(c.lower() for c in text)

    def _pieces(self, text: str) -> Iterator[str]:
        for match in WORD.finditer(text):
            name = match.group()
            special = name in ("<|startoftext|>", "<|endoftext|>")
            yield from ("<|", name[2:-2], "|>") if special else (name,)

    def _ids(self, prompt: str) -> Iterator[int]:
        for raw_id, raw in self._split(prompt, normalized=False):
            if raw_id is not None:
                yield raw_id
            for number, text in self._split(self._normal(raw), normalized=True):
                if number is not None:
                    yield number
                yield from (self.vocab[t] for w in self._pieces(text) for t in self._merge(w))

    def __call__(self, prompt: str) -> Array:
        """The [1, length] ids of a prompt."""
        length = self.record["length"]
        ids = [self.record["bos"], *list(self._ids(prompt))[: length - 2], self.record["eos"]]
        return np.array([ids + [self.record["pad"]] * (length - len(ids))], np.int32)


def on_white(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey
        grey = np.rint(np.asarray(image, np.float64) / 257).clip(0, 255)
        image = Image.fromarray(grey.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_image(path: Path, h: int, w: int) -> Array:
    """float32 [1, 3, H, W] in -1..1."""
    fitted = ImageOps.fit(on_white(Image.open(path)), (w, h), Image.Resampling.LANCZOS)
    return (np.asarray(fitted, np.float32) / np.float32(127.5) - 1).transpose(2, 0, 1)[None]


def read_mask(path: Path, h: int, w: int) -> Array:
    """float32 [1, 1, H, W] of 0 and 1, 1 = repaint."""
    rgb = np.asarray(on_white(Image.open(path)), np.int64)
    grey = (rgb @ np.array([19595, 38470, 7471]) + 32768) >> 16
    ih, iw = grey.shape
    p, q = (ih, h) if iw * h > w * ih else (iw, w)
    rows, cols = (
        (side * q - count * p + (2 * np.arange(count) + 1) * p) // (2 * q)
        for side, count in ((ih, h), (iw, w))
    )
    return (grey[rows][:, cols] >= 128).astype(np.float32)[None, None]


def effective(guidance: Json) -> Json:
    """Guidance of kind none where the scales turn it off."""
    off = guidance.get("text", 2) <= 1 or guidance.get("image", 1) < 1
    return {"kind": "none"} if off else guidance


def guide(guidance: Json, outs: list[Array]) -> Array:
    """The guided output m, formed in float64."""
    scales = {"none": [], "text": ["text"], "text_image": ["image", "text"]}[guidance["kind"]]
    o = [out.astype(np.float64) for out in outs]
    m = o[0] + sum(guidance[k] * (b - a) for k, a, b in zip(scales, o, o[1:], strict=False))
    need(bool(np.isfinite(m).all()), "the denoiser's output is not finite")
    return m.astype(np.float32)


class Bundle:
    """A trusted bundle and one of its tasks."""

    def __init__(self, root: Path, task: str | None) -> None:
        self.root, self.m = root, trusted(root)
        need(self.m["loop"] is not None and self.m["text"] is not None, "only some components")
        tasks = {t["name"]: t for t in self.m["tasks"]}
        self.task = tasks[task or next(iter(tasks))]
        self.parts = {p["component"]: p for p in self.m["parts"]}
        need(set(self.task["parts"]) <= set(self.parts), "a part is missing")
        name, files = "constants.safetensors", {f["path"] for f in self.m["files"]}
        self.constants = read_safetensors(root / name) if name in files else {}

    def session(self, component: str) -> Session:
        part = self.parts[component]
        file = self.root / part["path"] / part["entries"][self.task["name"]]
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        return Session(str(file), options, providers=["CPUExecutionProvider"])

    def run(self, name: str, feeds: Tensors | Array, on: Session | None = None) -> Tensors:
        """All outputs that the manifest names; an array is the only input."""
        part = self.parts[name]
        feeds = feeds if isinstance(feeds, dict) else {part["inputs"][0]["name"]: feeds}
        names = [o["name"] for o in part["outputs"]]
        outputs: Any = (on or self.session(name)).run(names, feeds)
        return dict(zip(names, outputs, strict=True))

    def only(self, name: str, feeds: Tensors | Array, on: Session | None = None) -> Array:
        return next(iter(self.run(name, feeds, on).values()))

    def constant(self, prefix: str) -> Tensors:
        n = len(prefix)
        return {k[n:]: v for k, v in self.constants.items() if k.startswith(prefix)}

    def text_inputs(self, prompt: str | None) -> Tensors:
        if self.task["prompt"] is not None:
            return self.constant(f"prompt/{self.task['name']}/")
        if prompt is None:
            raise ValueError("this task needs a prompt")
        entries, outs = {r["path"]: r for r in self.m["tokenizers"]}, {}
        for name, folder in self.m["text"]["tokenizers"].items():
            outs[name] = self.run(name, Tokenizer(self.root / folder, entries[folder])(prompt))
        return {
            name: np.concatenate([outs[r["component"]][r["output"]] for r in sources], -1)
            for name, sources in self.m["text"]["inputs"].items()
        }

    def channels(self, entry: Json, image: Maybe, mask: Maybe) -> Array:
        f, c, kind = self.m["latent"]["factor"], self.m["latent"]["channels"], entry["kind"]
        if kind == "mask" and mask is not None:
            return mask[:, :, ::f, ::f]
        h, w = self.m["image"]["height"] // f, self.m["image"]["width"] // f
        if image is None:
            return np.zeros((1, 3 if kind == "image" else c, h, w), np.float32)
        if kind == "image":
            return image.reshape(1, 3, h, f, w, f).mean((3, 5), dtype=np.float64).astype("f4")
        if kind == "masked_image_latent" and mask is not None:
            image = image * (mask < 0.5)
        scaled = kind == "masked_image_latent" or entry.get("scaled", True)
        factor = self.m["latent"]["scaling_factor"] if scaled else 1.0
        return np.float32(factor) * self.only("vae_encoder", image)

    def ask_unet(
        self, unet: Session, scaled: Array, t: float, branches: list[Branch]
    ) -> list[Array]:
        inputs = self.parts["unet"]["inputs"]
        size, outs = inputs[0]["shape"][0], []
        for at in range(0, len(branches), size):
            real = branches[at : at + size]
            full = real + [real[-1]] * (size - len(real))
            feeds = {i["name"]: np.concatenate([g[0][i["name"]] for g in full]) for i in inputs[2:]}
            samples = [np.concatenate([scaled, *g[1]], 1) for g in full]
            feeds |= {"sample": np.concatenate(samples), "timestep": np.array([t], np.float32)}
            out = self.only("unet", feeds, unet)
            outs += [out[i : i + 1] for i in range(len(real))]
        return outs

    def branches(self, prompt: str | None, image: Maybe, mask: Maybe) -> list[Branch]:
        branches = BRANCHES[effective(self.task["guidance"])["kind"]]
        texts = {"prompt": self.text_inputs(prompt), "empty": self.constant("empty/")}
        entries = self.task["conditioning"]
        conds = {"image": [self.channels(entry, image, mask) for entry in entries]}
        conds["no image"] = [self.channels(entry, None, mask) for entry in entries]
        return [(texts[t] | self.constant("sizes/"), conds[c]) for t, c in branches]

    def latents(self, branches: list[Branch], noise: Array, steps: int) -> Iterator[Array]:
        table, unet, past = self.m["loop"]["schedules"][str(steps)], self.session("unet"), []
        x = np.float32(table["init_noise_sigma"]) * noise
        for p in table["passes"]:
            outs = self.ask_unet(unet, np.float32(p["input_scale"]) * x, p["timestep"], branches)
            past = [(x, guide(effective(self.task["guidance"]), outs)), *past[:3]]
            terms = zip(p["x"], p["m"], past, strict=False)
            sums = [a * v.astype("f8") + b * m.astype("f8") for a, b, (v, m) in terms]
            x = np.sum(sums, 0).astype(np.float32)
            yield x

    def picture(
        self, prompt: str | None, image: Maybe, mask: Maybe, noise: Array, steps: int
    ) -> Array:
        """The picture of a request [1, 3, H, W], not clipped."""
        kinds, latent = {c["kind"] for c in self.task["conditioning"]}, self.m["latent"]
        need(image is not None or not kinds - {"mask"}, f"{sorted(kinds)} needs an image")
        need(mask is not None or not any("mask" in k for k in kinds), f"{kinds} needs a mask")
        need(str(steps) in self.m["loop"]["schedules"], f"no table for {steps} steps")
        h, w = (self.m["image"][side] // latent["factor"] for side in ("height", "width"))
        need(noise.shape == (1, latent["channels"], h, w), f"the noise is {noise.shape}")
        *_, x = self.latents(self.branches(prompt, image, mask), noise.astype(np.float32), steps)
        image_ = self.only("vae_decoder", x / np.float32(latent["scaling_factor"]))
        need(bool(np.isfinite(image_).all()), "the picture is not finite")
        return image_


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("bundle", type=Path)
    for name, kind in (("task", str), ("prompt", str), ("image", Path), ("mask", Path)):
        p.add_argument(f"--{name}", type=kind)
    p.add_argument("--noise", type=Path, required=True)
    p.add_argument("--steps", type=int)
    p.add_argument("-o", "--out", type=Path, required=True)
    a = p.parse_args()
    bundle = Bundle(a.bundle, a.task)
    h, w = bundle.m["image"]["height"], bundle.m["image"]["width"]
    image = read_image(a.image, h, w) if a.image else None
    mask = read_mask(a.mask, h, w) if a.mask else None
    steps, noise = a.steps or bundle.task["steps"], np.load(a.noise)
    picture = bundle.picture(a.prompt, image, mask, noise, steps)
    v = np.rint((picture[0].astype(np.float64).clip(-1, 1) + 1) * 127.5)  # halves to even
    Image.fromarray(v.astype(np.uint8).transpose(1, 2, 0).copy()).save(a.out)


if __name__ == "__main__":
    try:
        main()
    except ValueError as e:
        raise SystemExit(f"independent_loop.py: {e}") from e
