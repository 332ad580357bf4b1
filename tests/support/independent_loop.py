"""Make a picture of an ONNX bundle, from runtime/README.md alone.

Written by somebody who had that page, the schema and testdata/ and never saw mtu_export.

    python tests/support/independent_loop.py BUNDLE [--task NAME] [--prompt TEXT]
        [--negative-prompt TEXT] [--image FILE] [--mask FILE] [--input NAME=FILE|NUMBER ...]
        [--noise FILE.npy] [--steps N] [--strength S] -o OUT.png
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
Shape = list[int]
Branch = tuple[str, str]  # "prompt" or "empty", "image" or "no image"
RUNTIME = Path(__file__).resolve().parents[2] / "runtime"  # what an app ships of the contract
PROMPT: Branch = ("prompt", "image")
BRANCHES: dict[str, list[Branch]] = {
    "none": [PROMPT],
    "text": [("empty", "image"), PROMPT],
    "text_image": [("empty", "no image"), ("empty", "image"), PROMPT],
}
STAGES = ("once", "pass", "guided", "end")
STAGES_OF = {  # source kind -> the stages that may have it
    "latent": ("pass", "guided", "end"),
    "column": ("pass", "guided"),
    "constant": STAGES,
    "tokens": ("once",),
    "picture": STAGES,
    "tensor": STAGES,
    "number": STAGES,
    "output": STAGES,
    "guided": ("guided",),
}
ONNX_MESSAGES = {  # message -> the fields that lead to external data
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
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


class Refused(ValueError):
    """A bundle that fails a numbered rule."""

    def __init__(self, rule: int, why: object) -> None:
        super().__init__(f"refused by rule {rule}: {why}")
        self.rule = rule


def need(good: object, why: str) -> None:
    if not good:
        raise ValueError(why)


# --- Files ---


def walk(value: Any, depth: int = 1) -> Iterator[str]:
    """Every string of a JSON value that is at most 64 deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        need(depth <= 64, "nested too deeply")
        yield from value if isinstance(value, dict) else ()
        for item in value.values() if isinstance(value, dict) else value:
            yield from walk(item, depth + 1)


def read_json(text: bytes, what: str) -> Json:
    """A strict JSON object (rule 1); a whole number is an int, however it is written."""

    def number(text: str) -> float:
        value = float(text)
        need(math.isfinite(value), f"{what}: {text[:20]} is not finite")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value

    def once(pairs: list[tuple[str, Any]]) -> Json:
        need(len(dict(pairs)) == len(pairs), f"{what}: a key appears twice")
        return dict(pairs)

    hooks: Json = {"parse_constant": number, "parse_float": number, "parse_int": number}
    data = json.loads(text.decode("utf-8"), object_pairs_hook=once, **hooks)
    need(isinstance(data, dict), f"{what}: not an object")
    for string in walk(data):
        string.encode("utf-8")  # half a surrogate pair raises
    return data


def is_macos(name: str) -> bool:
    return name == ".DS_Store" or name.startswith("._")


def safe_path(root: Path, name: str) -> Path:
    path, steps = root, name.split("/")
    need(len(name) <= 255 and not set(name) & set("\\:\0"), f"path {name!r}: forbidden")
    need(not {"", ".", ".."} & set(steps), f"path {name!r}: a forbidden step")
    need(not any(map(is_macos, steps)), f"path {name!r}: of macOS")
    for step in steps:
        path = path / step
        need(path.exists() and not path.is_symlink(), f"path {name!r}: no file, or a link")
    need(path.is_file() or path.is_dir(), f"path {name!r}: neither a file nor a folder")
    files_below(path)
    return path


def files_below(path: Path) -> list[tuple[str, Path]]:
    """(path within, file) of a folder in order, of a file itself; rule 4's last sentence."""
    below = [p for p in path.rglob("*") if p.is_symlink() or not p.is_dir()]
    odd = [p for p in below if p.is_symlink() or not p.is_file()]
    need(not odd, f"{path}: holds more than plain files and folders")
    files = [(p.relative_to(path).as_posix(), p) for p in below if not is_macos(p.name)]
    return sorted(files) if path.is_dir() else [("", path)]


def sha256(path: Path) -> str:
    if path.is_dir():
        text = "".join(f"{sha256(p)}  {name}\n" for name, p in files_below(path))
        return hashlib.sha256(text.encode()).hexdigest()
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_header(path: Path) -> tuple[Json, int]:
    """The checked header of a safetensors file and where its data begin."""
    with path.open("rb") as f:
        n, size = int.from_bytes(f.read(8), "little"), path.stat().st_size
        need(n <= 4_000_000 and n <= size - 8, f"{path}: length of the header")
        header = read_json(f.read(n), str(path))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        (begin, end), shape = entry["data_offsets"], entry["shape"]
        need(entry["dtype"] in ("F32", "I32"), f"{path}: dtype of {name}")
        whole = all(type(d) is int and d >= 0 for d in [*shape, begin, end])
        fits = whole and begin <= end <= size - 8 - n and end - begin == 4 * math.prod(shape)
        need(fits, f"{path}: shape or offsets of {name}")
    return header, 8 + n


def read_safetensors(path: Path) -> Tensors:
    """The tensors of a safetensors file, checked to be finite."""
    (header, at), raw, tensors = read_header(path), path.read_bytes(), {}
    for name, entry in header.items():
        begin, end = (at + offset for offset in entry["data_offsets"])
        dtype = "<f4" if entry["dtype"] == "F32" else "<i4"
        tensors[name] = np.frombuffer(raw[begin:end], dtype).reshape(entry["shape"])
        need(np.isfinite(tensors[name]).all(), f"{path}: {name} is not finite")
    return tensors


# --- The schema ---


def has_type(value: Any, name: str) -> bool:
    types: dict[str, Any] = {"object": dict, "array": list, "string": str, "boolean": bool}
    if name == "null":
        return value is None
    if name in types:
        return isinstance(value, types[name])
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and (name == "number" or float(value).is_integer())


def check_sizes(value: Any, schema: Json, at: str) -> None:
    limits = {"string": ("minLength", "maxLength"), "array": ("minItems", "maxItems")}
    limits |= {"object": ("minProperties", "maxProperties")}
    for name, (low, high) in limits.items():
        if has_type(value, name):
            inside = schema.get(low, 0) <= len(value) <= schema.get(high, math.inf)
            need(inside, f"{at}: {len(value)} items")
    if has_type(value, "number"):
        inside = schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
        need(inside and value > schema.get("exclusiveMinimum", -math.inf), f"{at}: {value}")
    if isinstance(value, str) and "pattern" in schema:
        pattern = schema["pattern"].removeprefix("^").removesuffix("$")
        need(regex.fullmatch(pattern, value) is not None, f"{at}: {value!r}")


def check_schema(value: Any, schema: Json, at: str = "manifest") -> None:
    """Rule 3, in the keywords that the page lists."""
    if "anyOf" in schema:
        problems: list[str] = []
        for option in schema["anyOf"]:
            try:
                check_schema(value, option, at)
                return
            except ValueError as e:
                problems.append(str(e))
        raise ValueError(max(problems, key=len))
    need("type" not in schema or has_type(value, schema["type"]), f"{at}: not {schema.get('type')}")
    need("const" not in schema or value == schema["const"], f"{at}: {value!r}")
    need("enum" not in schema or value in schema["enum"], f"{at}: {value!r}")
    check_sizes(value, schema, at)
    if isinstance(value, list):
        for i, item in enumerate(value):
            check_schema(item, schema.get("items", {}), f"{at}[{i}]")
    if isinstance(value, dict):
        missing = set(schema.get("required", ())) - set(value)
        need(not missing, f"{at}: no {sorted(missing)}")
        for key, item in value.items():
            check_schema(key, schema.get("propertyNames", {}), f"{at}: key {key!r}")
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties", {}))
            need(inner is not False, f"{at}: unknown key {key!r}")
            check_schema(item, inner, f"{at}.{key}")


# --- The rules ---


def rows(m: Json, key: str) -> list[Json]:
    return m.get(key) or []


def schedules(m: Json) -> list[Json]:
    return (m.get("loop") or {}).get("schedules", [])


def distinct(names: list[Any], what: str) -> None:
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    need(not twice, f"{what} {twice} appear twice")


def check_paths(m: Json) -> None:
    """Rule 5."""
    paths = [entry["path"] for entry in m["parts"] + rows(m, "files")]
    distinct(paths, "paths")
    distinct([t["path"] for t in m["tokenizers"]], "tokenizers")
    inner = [p for p in paths if any(p.startswith(f"{outer}/") for outer in paths)]
    need(not inner, f"{inner} lie within others")


def check_opened(m: Json, root: Path) -> None:
    """Rule 7."""
    files = {entry["path"] for entry in rows(m, "files")}
    opened = [t["path"] for t in m["tokenizers"]]
    opened += [path for part in m["parts"] for path in part.get("data") or []]
    stock = ("constants.safetensors", "goldens.safetensors")
    opened += [name for name in stock if (root / name).exists()]
    need(set(opened) <= files, f"{sorted(set(opened) - files)}: no entry in files")


def varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
        need(shift < 70, "a number without an end")


def proto_fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, content) of a message's fields with content; the others are stepped over."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        wire, length = tag & 7, 0
        if wire == 0:
            _, at = varint(data, at)
            continue
        if wire == 2:
            length, at = varint(data, at)
        else:
            need(wire in (1, 5), f"wire type {wire}")
            length = 8 if wire == 1 else 4
        need(at + length <= len(data), "a field that is cut off")
        if wire == 2:
            yield tag >> 3, data[at : at + length]
        at += length


def locations(data: memoryview, message: str = "model") -> Iterator[str]:
    """Every `location` of external data in an ONNX model, which holds no graph in a node."""
    if message == "entry":
        content = dict(proto_fields(data))
        if bytes(content.get(1, b"")) == b"location":
            yield bytes(content.get(2, b"")).decode()
        return
    for number, content in proto_fields(data):
        if (inner := ONNX_MESSAGES[message].get(number)) is not None:
            if (message, inner) == ("attribute", "graph"):
                raise Refused(13, "a node with a graph of its own")
            yield from locations(content, inner)


def check_graph(folder: Path, entry: str, *, hashed: bool) -> None:
    """The end of rule 8; what a graph itself says only once it is what was exported."""

    def plain(name: str) -> bool:
        fine = regex.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) is not None
        return fine and (folder / name).is_file() and not (folder / name).is_symlink()

    need(plain(entry), f"{folder.name}: entry {entry!r}")
    for location in locations(memoryview((folder / entry).read_bytes())) if hashed else ():
        need(plain(location), f"{entry}: location {location!r}")


def check_limits(m: Json) -> None:
    """Rule 13."""
    limits = {"goldens.safetensors": 4_000_000_000}
    sizes = [(p["path"], p["bytes"], 64_000_000_000) for p in m["parts"]]
    sizes += [(f["path"], f["bytes"], limits.get(f["path"], 256_000_000)) for f in rows(m, "files")]
    for path, size, limit in sizes:
        need(size <= limit, f"{path}: {size} bytes, at most {limit}")


def check_names(m: Json, root: Path) -> None:
    """Rule 8."""
    distinct([p["name"] for p in m["parts"]], "parts")
    distinct([t["name"] for t in m["tasks"]], "tasks")
    distinct([(s["steps"], s.get("strength")) for s in schedules(m)], "schedules")
    for task in m["tasks"]:
        distinct([c["id"] for c in task["flow"]["calls"]], f"calls of {task['name']}")
    for part in m["parts"]:
        name = part["name"]
        need(name != "pipeline", "a part is called pipeline")
        users = {t["name"] for t in m["tasks"] if name in {c["part"] for c in t["flow"]["calls"]}}
        need(users and set(part["entries"]) == users, f"{name}: entries")
        others = [part.get("task_inputs"), part["cost"].get("task_weight_bytes")]
        for tasks in [*others, part.get("witness")]:
            need(set(tasks or {}) <= users, f"{name}: a task without an entry")
        names = [i["name"] for i in part["inputs"]]
        distinct(names, f"inputs of {name}")
        distinct([o["name"] for o in part["outputs"]], f"outputs of {name}")
        for inputs in (part.get("task_inputs") or {}).values():
            need([i["name"] for i in inputs] == names, f"{name}: task_inputs")
    check_graphs(m, root, hashed=False)


def check_graphs(m: Json, root: Path, *, hashed: bool) -> None:
    for part in m["parts"] if m["target"] == "onnx" else ():
        for entry in sorted(set(part["entries"].values())):
            check_graph(root / part["path"], entry, hashed=hashed)


def check_tables(m: Json) -> None:
    """Rule 9."""
    for table in schedules(m):
        for i, p in enumerate(table["passes"]):
            back = p["x"][i + 1 :] + p["m"][i + 1 :]
            need(not any(back), f"schedule {table['steps']}: pass {i} looks back too far")
            timestep = p["columns"].get("timestep")
            need(has_type(timestep, "number"), f"schedule {table['steps']}: pass {i}: timestep")
        without = table.get("strength") is None
        need(not (without and table["start"]["picture"]), f"schedule {table['steps']}: start")


def check_files(m: Json, root: Path) -> None:
    """Rule 6; the sizes of all come before the first hash."""
    entries = m["parts"] + rows(m, "files")
    for entry in entries:
        size = sum(p.stat().st_size for _, p in files_below(root / entry["path"]))
        need(size == entry["bytes"], f"{entry['path']}: {size} bytes")
    for entry in entries:
        need(sha256(root / entry["path"]) == entry["sha256"], f"{entry['path']}: sha256")


def task_inputs(part: Json, task: str) -> list[Json]:
    return (part.get("task_inputs") or {}).get(task) or part["inputs"]


def prompted(call: Json, calls: dict[str, Json]) -> bool:
    """Whether a once call depends on the prompt."""
    sources = [s for value in call["inputs"].values() for s in value["sources"]]
    before = [calls[s["call"]] for s in sources if s["kind"] == "output"]
    return any(s["kind"] == "tokens" for s in sources) or any(prompted(c, calls) for c in before)


def latent_shape(m: Json) -> Shape:
    factor = m["latent"]["factor"]
    return [1, m["latent"]["channels"], *(m["image"][s] // factor for s in ("height", "width"))]


def fitted_shape(m: Json, picture: Json) -> Shape:
    channels = 3 if picture["kind"] == "picture" else 1
    return [1, channels, m["image"]["height"], m["image"]["width"]]


def golden_shape(m: Json, name: str) -> Shape | None:
    """The shape that the manifest says of a golden, None of what it does not know."""
    first, task_name, kind, *rest = [*name.split("/"), "", ""]
    if first != "loop":
        for part in (p for p in m["parts"] if p["name"] == first):
            tensors = task_inputs(part, task_name) + part["outputs"]
            return next((t["shape"] for t in tensors if t["name"] == rest[0]), None)
        return None
    task = next((t for t in m["tasks"] if t["name"] == task_name), None)
    if task is None:
        return None
    if kind == "picture":
        return [1, 3, m["image"]["height"], m["image"]["width"]]
    if kind == "request":
        pictures, tensors = (task["inputs"].get(k) or {} for k in ("pictures", "tensors"))
        if rest[0] in tensors:
            return tensors[rest[0]]["shape"]
        return fitted_shape(m, pictures[rest[0]]) if rest[0] in pictures else None
    return latent_shape(m) if kind in ("noise", "outputs", "latents") else None


def read_constants(root: Path) -> Tensors:
    """Rule 10 of the constants."""
    path = root / "constants.safetensors"
    if not path.exists():
        return {}
    need(path.stat().st_size <= 256_000_000, "constants.safetensors: too large")
    return read_safetensors(path)


def check_goldens(m: Json, root: Path) -> None:
    """Rule 10 of the goldens."""
    path = root / "goldens.safetensors"
    if not path.exists():
        return
    for name, entry in read_header(path)[0].items():
        shape, expected = entry["shape"], golden_shape(m, name)
        if name.startswith("loop/") and name.endswith("/noise"):
            shape = [1, *shape[1:]] if shape and shape[0] else shape
        need(expected in (None, shape), f"golden {name}: {shape}, not {expected}")
    read_safetensors(path)


@dataclass
class Checker:
    """Rules 11 and 12 for one task."""

    m: Json
    task: Json
    constants: Tensors = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name, self.flow, self.batch = self.task["name"], self.task["flow"], 1
        self.parts = {p["name"]: p for p in self.m["parts"]}
        self.calls = {c["id"]: c for c in self.flow["calls"]}
        self.request = {k: self.task["inputs"].get(k) or {} for k in ("pictures", "tensors")}
        self.request["numbers"] = self.task["inputs"].get("numbers") or {}

    def output(self, reference: Json, what: str) -> Json | None:
        """The output that is named; None where its part was not exported."""
        need(reference["call"] in self.calls, f"{what}: no call {reference['call']!r}")
        part = self.parts.get(self.calls[reference["call"]]["part"])
        named = [o for o in (part or {"outputs": []})["outputs"] if o["name"] == reference["name"]]
        need(named or part is None, f"{what}: no output {reference['name']!r}")
        return named[0] if named else None

    def check_source(self, source: Json, when: str, before: list[str], what: str) -> None:
        kind = source["kind"]
        need(when in STAGES_OF[kind], f"{what}: {kind} in a {when} call")
        need(source.get("only") is None or when == "pass", f"{what}: only in a {when} call")
        scaled = [source.get("multiply"), source.get("divide")]
        need(None in scaled, f"{what}: multiply and divide")
        if kind in ("picture", "tensor", "number"):
            need(source["name"] in self.request[f"{kind}s"], f"{what}: no {kind} {source['name']}")
        if kind == "picture":
            mask = self.request["pictures"].get(source.get("outside"), {}).get("kind")
            need(source.get("outside") is None or mask == "mask", f"{what}: outside is no mask")
            need(None in (source.get("every"), source.get("mean")), f"{what}: every and mean")
        if kind == "output":
            need(source["call"] in before, f"{what}: {source['call']!r} is no earlier call")
            stage = self.calls[source["call"]]["when"]
            need(stage in ("once", when), f"{what}: an output of a {stage} call")
            self.output(source, what)

    def check_order(self) -> None:
        """Rule 11."""
        before: list[str] = []
        stages = [STAGES.index(c["when"]) for c in self.flow["calls"]]
        need(stages == sorted(stages), f"{self.name}: calls are out of order")
        for call in self.flow["calls"]:
            what = f"{self.name}: {call['id']}"
            if call["part"] in self.parts:
                names = {i["name"] for i in self.parts[call["part"]]["inputs"]}
                need(set(call["inputs"]) == names, f"{what}: inputs are not {sorted(names)}")
            for value in call["inputs"].values():
                joined = len(value["sources"]) > 1
                need((value.get("axis") is not None) == joined, f"{what}: axis")
                need(value.get("empty") is None or call["when"] == "pass", f"{what}: empty")
                for source in value["sources"]:
                    self.check_source(source, call["when"], before, what)
                    if source["kind"] == "tokens" and call["part"] in self.parts:
                        paths = [t["path"] for t in self.m["tokenizers"]]
                        path = source["tokenizer"]
                        need(path in paths, f"{what}: no tokenizer {path!r}")
            before.append(call["id"])
        for name, number in self.request["numbers"].items():
            low, high = number["minimum"], number["maximum"]
            need(low <= number["default"] <= high, f"{self.name}: number {name}")
        self.check_results(before)

    def check_results(self, before: list[str]) -> None:
        loop = self.flow.get("prediction") is not None
        ends = {"prediction": "pass", "refined": "guided", "picture": "end" if loop else "once"}
        for key, when in ends.items():
            if self.flow.get(key) is not None:
                self.output(self.flow[key], key)
                stage = self.calls[self.flow[key]["call"]]["when"]
                need(stage == when, f"{self.name}: {key} of a {stage} call")
        start = self.flow.get("start")
        if not loop:
            once = all(c["when"] == "once" for c in self.flow["calls"])
            need(once and start is None, f"{self.name}: no prediction, but a loop")
            need(self.flow.get("refined") is None, f"{self.name}: refined without a loop")
            need(self.task["guidance"]["kind"] == "none", f"{self.name}: guidance without a loop")
            return
        guided = any(c["when"] == "guided" for c in self.flow["calls"])
        need(guided == (self.flow.get("refined") is not None), f"{self.name}: refined")
        strength = self.task.get("strength")
        need((start is None) == (strength is None), f"{self.name}: strength without start")
        if start is not None:
            need(start["kind"] not in ("tokens", "number"), f"{self.name}: start is no latent")
            earlier = [c for c in before if self.calls[c]["when"] == "once"]
            self.check_source(start, "once", earlier, f"{self.name}: start")

    def source_shape(self, source: Json, fill: Shape | None) -> Shape:
        """The shape of one branch's source; `fill` is the input's, for a number."""
        kind = source["kind"]
        if kind in ("latent", "guided"):
            return latent_shape(self.m)
        if kind == "tokens":
            entry = next(t for t in self.m["tokenizers"] if t["path"] == source["tokenizer"])
            need(3 <= entry["length"] <= 1024, f"a prompt of {entry['length']} tokens")
            return [1, entry["length"]]
        if kind == "constant":
            tensor = self.constants[source["name"]]
            need(tensor.dtype == np.float32, f"constant {source['name']} is not float32")
            return list(tensor.shape)
        if kind == "tensor":
            return self.request["tensors"][source["name"]]["shape"]
        if kind == "output":
            output = self.output(source, source["call"])
            if output is None:
                raise ValueError("a missing part has no shapes")
            in_pass = self.calls[source["call"]]["when"] == "pass"
            return [1, *output["shape"][1:]] if in_pass else output["shape"]
        if kind == "picture":
            shape = fitted_shape(self.m, self.request["pictures"][source["name"]])
            step = source.get("every") or source.get("mean") or 1
            need(all(side % step == 0 for side in shape[2:]), f"{step} does not divide {shape}")
            return shape[:2] + [side // step for side in shape[2:]]
        if kind == "column":
            columns = [p["columns"] for s in schedules(self.m) for p in s["passes"]]
            need(all(source["name"] in c for c in columns), f"no column {source['name']}")
            lengths = {np.shape(c[source["name"]]) for c in columns}
            need(len(lengths) == 1, f"column {source['name']} has several shapes")
            if (length := lengths.pop()) != ():
                return [1, *length]
        if fill is None:
            raise ValueError(f"a {kind} among several sources fills nothing")
        return fill

    def value_shape(self, value: Json, fill: Shape) -> Shape:
        alone = fill if len(value["sources"]) == 1 else None
        shapes = [self.source_shape(source, alone) for source in value["sources"]]
        need(all(s[:1] == [1] for s in shapes), "a source's first extent is not 1")
        joined, axis = list(shapes[0]), value.get("axis", 0)
        for shape in shapes[1:]:
            need(len(shape) == len(joined) > axis, f"axis {axis} of {shape}")
            total = joined[axis] + shape[axis]
            joined[axis] = shape[axis]
            need(shape == joined, f"{shape} does not join {shapes[0]}")
            joined[axis] = total
        if value.get("empty") is not None:
            need(list(self.constants[value["empty"]].shape) == joined, "the shape of empty")
        return joined

    def check_shapes(self) -> None:
        """Rule 12."""
        if any(c["part"] not in self.parts for c in self.flow["calls"]):
            return  # this task does not run
        if self.flow.get("prediction") is not None:
            need(self.m.get("latent") and schedules(self.m), f"{self.name}: no latent, or no table")
        passes = [self.parts[c["part"]] for c in self.flow["calls"] if c["when"] == "pass"]
        parts = [self.parts[c["part"]] for c in self.flow["calls"]]
        tensors = [t for p in parts for t in task_inputs(p, self.name) + p["outputs"]]
        need(all(t["shape"] for t in tensors), f"{self.name}: a tensor without a first extent")
        outputs = [t for p in parts for t in p["outputs"]]
        need(all(t["dtype"] == "float32" for t in outputs), f"{self.name}: an output is int32")
        extents = [t["shape"][0] for p in passes for t in task_inputs(p, self.name) + p["outputs"]]
        self.batch = max([1, *extents])
        need(set(extents) <= {1, self.batch}, f"{self.name}: several batches")
        need(self.batch <= 64, f"{self.name}: a batch of {self.batch}")
        for call in self.flow["calls"]:
            for tensor in task_inputs(self.parts[call["part"]], self.name):
                what = f"{self.name}: {call['id']}: {tensor['name']}"
                self.check_value(call, tensor, call["inputs"][tensor["name"]], what)
        self.check_result_shapes()

    def check_value(self, call: Json, tensor: Json, value: Json, what: str) -> None:
        shape, sources = tensor["shape"], value["sources"]
        dtype = "int32" if sources[0]["kind"] == "tokens" else "float32"
        kinds = {s["kind"] == "tokens" for s in sources}
        need(tensor["dtype"] == dtype and len(kinds) == 1, f"{what}: dtype")
        scaled = [s.get("multiply") or s.get("divide") for s in sources if s["kind"] == "tokens"]
        need(not any(scaled), f"{what}: scaled tokens")
        need(call["when"] == "pass" or shape[0] == 1, f"{what}: a batch")
        if call["when"] == "pass" and self.batch != 1 and shape[0] == 1:
            calls = [self.calls[s["call"]] for s in sources if s["kind"] == "output"]
            varying = any(c["when"] == "pass" or prompted(c, self.calls) for c in calls)
            branched = value.get("empty") is not None or any(s.get("only") for s in sources)
            need(not branched and not varying, f"{what}: takes one value for all branches")
        fill = [1, *shape[1:]]
        need(self.value_shape(value, fill) == fill, f"{what}: shape")

    def check_result_shapes(self) -> None:
        height, width = (self.m["image"][side] for side in ("height", "width"))
        shapes = {"picture": [1, 3, height, width]}
        if self.flow.get("prediction") is not None:
            factor, latent = self.m["latent"]["factor"], latent_shape(self.m)
            need(height % factor == width % factor == 0, "the factor does not divide the picture")
            shapes |= {"prediction": [self.batch, *latent[1:]], "refined": latent}
            if self.flow.get("start") is not None:
                start = self.source_shape(self.flow["start"], latent)
                need(start == latent, f"{self.name}: start is {start}")
        for key, shape in shapes.items():
            if self.flow.get(key) is not None:
                output = self.output(self.flow[key], key) or {}
                need(output["shape"] == shape, f"{self.name}: {key} is not {shape}")


def trusted(root: Path) -> Json:
    """The manifest of a bundle that passed the rules."""
    m: Json = {}

    def manifest() -> None:
        path = root / "manifest.json"
        need(path.is_file() and not path.is_symlink(), "manifest.json is no plain file")
        need(path.stat().st_size <= 4_000_000, "manifest.json is too large")
        m.update(read_json(path.read_bytes(), "manifest.json"))

    def version() -> None:
        fine = regex.fullmatch(r"2\.[0-9]+", m["schema_version"]) is not None
        need(fine, f"schema {m['schema_version']}: of another version; export it again")

    def paths() -> None:
        for entry in m["parts"] + rows(m, "files"):
            safe_path(root, entry["path"])

    def order() -> None:
        for task in m["tasks"]:
            Checker(m, task).check_order()

    def shapes() -> None:
        constants = read_constants(root)
        for task in m["tasks"]:
            Checker(m, task, constants).check_shapes()

    schema = json.loads((RUNTIME / "manifest.schema.json").read_text())
    rules: list[tuple[int, Callable[[], object]]] = [
        (1, manifest),
        (2, version),
        (3, lambda: check_schema(m, schema)),
        (4, paths),
        (5, lambda: check_paths(m)),
        (7, lambda: check_opened(m, root)),
        (8, lambda: check_names(m, root)),
        (9, lambda: check_tables(m)),
        (11, order),
        (13, lambda: check_limits(m)),
        (6, lambda: check_files(m, root)),
        (8, lambda: check_graphs(m, root, hashed=True)),
        (10, lambda: read_constants(root)),
        (12, shapes),
        (10, lambda: check_goldens(m, root)),
    ]
    for number, rule in rules:
        try:
            rule()
        except Refused:
            raise
        except (LookupError, TypeError, AttributeError, OSError, ValueError, RecursionError) as e:
            raise Refused(number, e) from e
    return m


# --- Text ---


def canonical(folder: Path, record: Json) -> Json:
    """tokenizer.json, refused where more than what may vary differs from testdata's."""

    def blank(tokenizer: Json) -> Json:
        t = json.loads(json.dumps(tokenizer))
        for key in ("vocab", "merges", "unk_token"):
            t["model"].pop(key)
        t.pop("added_tokens")
        need(t["truncation"].pop("max_length") == t["padding"]["strategy"].pop("Fixed"), "length")
        for key in ("cls", "sep"):
            t["post_processor"].pop(key)
        for key in ("pad_id", "pad_token"):
            t["padding"].pop(key)
        return t

    whole = read_json((folder / "tokenizer.json").read_bytes(), "tokenizer.json")
    stock = RUNTIME / "testdata/edit-onnx-int8/tokenizer/tokenizer.json"
    need(blank(whole) == blank(json.loads(stock.read_text())), f"{folder}: not canonical")
    processor, padding = whole["post_processor"], whole["padding"]
    ids = [processor["cls"][1], processor["sep"][1], padding["pad_id"]]
    expected = [record[key] for key in ("bos", "eos", "pad")]
    need(ids == expected, f"{folder}: bos, eos, pad are {ids}, not {expected}")
    need(whole["truncation"]["max_length"] == record["length"], f"{folder}: length")
    return whole


class Tokenizer:
    def __init__(self, folder: Path, record: Json) -> None:
        self.record = record
        self.vocab = read_json((folder / "vocab.json").read_bytes(), "vocab.json")
        lines = (folder / "merges.txt").read_bytes().decode().replace("\r\n", "\n").split("\n")
        pairs = filter(None, lines[lines[0].startswith("#version") :])
        self.ranks = {tuple(s.split(" ")): i for i, s in enumerate(pairs)}
        self.added = canonical(folder, record)["added_tokens"]

    def expanded(self, number: int) -> Iterator[int]:
        """The ids that an added token stands for."""
        ids = {token["content"]: token["id"] for token in self.added}
        (name,) = (token["content"] for token in self.added if token["id"] == number)
        yield number
        n = 1
        while f"{name}_{n}" in ids:
            yield ids[f"{name}_{n}"]
            n += 1

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
                yield from self.expanded(raw_id)
            for number, text in self._split(self._normal(raw), normalized=True):
                if number is not None:
                    yield from self.expanded(number)
                yield from (self.vocab[t] for w in self._pieces(text) for t in self._merge(w))

    def __call__(self, prompt: str) -> Array:
        """The [1, length] ids of a prompt."""
        length = self.record["length"]
        ids = [self.record["bos"], *list(self._ids(prompt))[: length - 2], self.record["eos"]]
        return np.array([ids + [self.record["pad"]] * (length - len(ids))], np.int32)


# --- Pictures ---


def on_white(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey
        grey = np.rint(np.asarray(image, np.float64) / 257).clip(0, 255)
        image = Image.fromarray(grey.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def nearest(levels: Array, h: int, w: int) -> Array:
    """I7's rectangle and pixels."""
    ih, iw = levels.shape[:2]
    p, q = (ih, h) if iw * h > w * ih else (iw, w)
    at_rows, at_columns = (
        (side * q - count * p + (2 * np.arange(count) + 1) * p) // (2 * q)
        for side, count in ((ih, h), (iw, w))
    )
    return levels[at_rows][:, at_columns]


def grey_level(rgb: Array) -> Array:
    return (rgb.astype(np.int64) @ np.array([19595, 38470, 7471]) + 32768) >> 16


def fit_picture(image: Image.Image, picture: Json, h: int, w: int) -> Array:
    """float32 [1, 3 or 1, H, W] of a request's picture, grey or mask."""
    upright = on_white(image)
    if picture["kind"] == "mask":
        mask = nearest(grey_level(np.asarray(upright)), h, w) >= 128
        return mask.astype(np.float32)[None, None]
    if picture.get("filter") == "nearest":
        levels = nearest(np.asarray(upright), h, w)
    else:
        levels = np.asarray(ImageOps.fit(upright, (w, h), Image.Resampling.LANCZOS))
    if picture["kind"] == "grey":
        levels = grey_level(levels)[:, :, None]
    scaled = levels.transpose(2, 0, 1)[None].astype(np.float32)
    span = picture.get("range") or "-1..1"
    if span == "-1..1":
        return scaled / np.float32(127.5) - np.float32(1)
    return scaled / np.float32(255) if span == "0..1" else scaled


# --- The loop ---


@dataclass(frozen=True)
class Request:
    prompt: str | None = None
    negative_prompt: str | None = None
    pictures: Tensors = field(default_factory=dict)  # fitted
    tensors: Tensors = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    noise: Array | None = None
    steps: int | None = None
    strength: float | None = None


@dataclass(frozen=True)
class Pass:
    """What the calls of one pass may take beside the outputs of once calls."""

    latent: Array
    columns: Json = field(default_factory=dict)
    guided: Array | None = None


Run = Callable[[str, Tensors], Tensors]
Ids = Callable[[str, str], Array]


def effective(guidance: Json) -> Json:
    """Guidance of kind none where the scales turn it off."""
    off = guidance.get("text", 2) <= 1 or guidance.get("image", 1) < 1
    return {"kind": "none"} if off else guidance


def guide(guidance: Json, outs: list[Array]) -> Array:
    """The guided sum m, formed in float64."""
    scales = {"none": [], "text": ["text"], "text_image": ["image", "text"]}[guidance["kind"]]
    o = [out.astype(np.float64) for out in outs]
    m = o[0] + sum(guidance[k] * (b - a) for k, a, b in zip(scales, o, o[1:], strict=False))
    need(np.isfinite(m).all(), "the prediction is not finite")
    return m.astype(np.float32)


class Loop:
    """One request of one task; `run` runs a part, `ids` makes tokens of a text."""

    def __init__(
        self, m: Json, task: Json, constants: Tensors, run: Run, ids: Ids, request: Request
    ) -> None:
        self.m, self.task, self.flow, self.constants = m, task, task["flow"], constants
        self.run, self.ids, self.request = run, ids, request
        self.parts = {p["name"]: p for p in m["parts"]}
        self.calls = {c["id"]: c for c in self.flow["calls"]}
        self.guidance = effective(task["guidance"])
        self.outputs: dict[tuple[str, str], Tensors] = {}  # call, "prompt" or "negative"
        passes = [self.parts[c["part"]] for c in self.stage("pass")]
        tensors = [t for p in passes for t in task_inputs(p, task["name"]) + p["outputs"]]
        self.batch = max([1, *(t["shape"][0] for t in tensors)])
        self.check_request()

    def stage(self, when: str) -> list[Json]:
        return [c for c in self.flow["calls"] if c["when"] == when]

    def check_request(self) -> None:
        inputs, request = self.task["inputs"], self.request
        for kind in ("pictures", "tensors", "numbers"):
            names, values = inputs.get(kind) or {}, getattr(request, kind)
            needed = set(names) if kind != "numbers" else set(values) & set(names)
            need(set(values) == needed, f"{kind} are {sorted(values)}, not {sorted(names)}")
        for name, tensor in request.tensors.items():
            need(list(tensor.shape) == inputs["tensors"][name]["shape"], f"the shape of {name}")
        for name, number in request.numbers.items():
            limits = inputs["numbers"][name]
            need(limits["minimum"] <= number <= limits["maximum"], f"{name} is {number}")
        takes = any(prompted(call, self.calls) for call in self.stage("once"))
        need((request.prompt is not None) == takes, f"a prompt: {'needed' if takes else 'none'}")
        negative = takes and self.task["guidance"]["kind"] != "none"
        need(request.negative_prompt is None or negative, "this task has no negative prompt")

    def table(self) -> Json:
        strength = self.request.strength if self.flow.get("start") is not None else None
        need(strength == self.request.strength, "this task has no strength")
        for table in schedules(self.m):
            if (table["steps"], table.get("strength")) == (self.request.steps, strength):
                return table
        raise ValueError(f"no table for {self.request.steps} steps, strength {strength}")

    def noise(self, passes: list[Json]) -> Array:
        noise = self.request.noise
        if noise is None:
            raise ValueError("this task needs noise")
        counts = [1 + len(passes)] + [1] * (not any(p["noise"] for p in passes))
        shapes = [(count, *latent_shape(self.m)[1:]) for count in counts]
        need(noise.shape in shapes, f"the noise is {noise.shape}, not {shapes}")
        return noise.astype(np.float32)

    def picture_source(self, source: Json) -> Array:
        array = self.request.pictures[source["name"]]
        if source.get("outside"):
            array = array * (self.request.pictures[source["outside"]] < 0.5).astype(np.float32)
        if n := source.get("every"):
            array = array[:, :, ::n, ::n]
        if n := source.get("mean"):
            b, c, h, w = array.shape
            cells = array.astype(np.float64).reshape(b, c, h // n, n, w // n, n)
            array = cells.mean((3, 5)).astype(np.float32)
        return array

    def source(self, source: Json, fill: Shape, text: str, at: Pass | None, local: Json) -> Array:
        """A source as the branches with image have it; `local` are outputs of this stage."""
        kind, name = source["kind"], source.get("name", "")
        if kind == "tokens":
            request = self.request
            prompt = request.negative_prompt if text == "negative" else request.prompt
            return self.ids(source["tokenizer"], prompt or "")
        if kind == "output":
            outputs = local.get(source["call"])
            if outputs is None:
                made = self.outputs.get((source["call"], text))
                outputs = self.outputs[source["call"], "prompt"] if made is None else made
            array = outputs[name]
        elif kind == "picture":
            array = self.picture_source(source)
        elif kind == "constant":
            array = self.constants[source["name"]]
        elif kind == "tensor":
            array = self.request.tensors[source["name"]].astype(np.float32)
        elif kind == "number":
            limits = self.task["inputs"]["numbers"][name]
            number = self.request.numbers.get(source["name"], limits["default"])
            array = np.full(fill, number, np.float32)
        elif at is None:
            raise ValueError(f"{kind} outside the loop")
        elif kind == "column":
            column = at.columns[source["name"]]
            many = isinstance(column, list)
            array = np.array([column], np.float32) if many else np.full(fill, column, np.float32)
        else:
            array = at.latent if kind == "latent" or at.guided is None else at.guided
        if source.get("multiply") is not None:
            array = array * np.float32(source["multiply"])
        return array / np.float32(source["divide"]) if source.get("divide") is not None else array

    def value(
        self, value: Json, fill: Shape, branch: Branch, at: Pass | None, local: Json
    ) -> Array:
        text = "prompt" if branch[0] == "prompt" else "negative"
        constant = value.get("empty") if text == "negative" else None
        if constant is not None and self.request.negative_prompt is None:
            return self.constants[constant]
        arrays = []
        for source in value["sources"]:
            array = self.source(source, fill, text, at, local)
            dropped = source.get("only") is not None and source["only"] not in branch
            arrays.append(np.zeros_like(array) if dropped else array)
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, value["axis"])

    def call_once(self, call: Json, text: str, at: Pass | None, local: Json) -> Tensors:
        """A call of batch 1."""
        feeds: Tensors = {}
        for tensor in task_inputs(self.parts[call["part"]], self.task["name"]):
            value = call["inputs"][tensor["name"]]
            arrays = [self.source(s, tensor["shape"], text, at, local) for s in value["sources"]]
            feeds[tensor["name"]] = (
                arrays[0] if len(arrays) == 1 else np.concatenate(arrays, value["axis"])
            )
        return self.run(call["part"], feeds)

    def run_once(self) -> None:
        negative = self.request.negative_prompt is not None and self.guidance["kind"] != "none"
        for call in self.stage("once"):
            texts = ["prompt"] + ["negative"] * (negative and prompted(call, self.calls))
            for text in texts:
                self.outputs[call["id"], text] = self.call_once(call, text, None, {})

    def run_stage(self, when: str, at: Pass) -> Json:
        local: Json = {}
        for call in self.stage(when):
            local[call["id"]] = self.call_once(call, "prompt", at, local)
        return local

    def ask(self, at: Pass, batch: list[Branch]) -> list[Array]:
        """The predictions of a full batch of branches."""
        local: list[Json] = [{} for _ in batch]
        for call in self.stage("pass"):
            feeds: Tensors = {}
            for tensor in task_inputs(self.parts[call["part"]], self.task["name"]):
                value, shape = call["inputs"][tensor["name"]], tensor["shape"]
                if self.batch != 1 and shape[0] == 1:
                    feeds[tensor["name"]] = self.value(value, shape, PROMPT, at, {})
                    continue
                fill = [1, *shape[1:]]
                pairs = zip(batch, local, strict=True)
                arrays = [self.value(value, fill, branch, at, mine) for branch, mine in pairs]
                feeds[tensor["name"]] = np.concatenate(arrays)
            outputs = self.run(call["part"], feeds)
            for b, mine in enumerate(local):
                mine[call["id"]] = {
                    k: v if len(v) == 1 else v[b : b + 1] for k, v in outputs.items()
                }
        prediction = self.flow["prediction"]
        return [mine[prediction["call"]][prediction["name"]] for mine in local]

    def guided_sum(self, p: Json, x: Array) -> Array:
        at = Pass(np.float32(p["input_scale"]) * x, p["columns"])
        branches, outs = BRANCHES[self.guidance["kind"]], []
        for begin in range(0, len(branches), self.batch):
            batch = branches[begin : begin + self.batch]
            full = batch + [batch[-1]] * (self.batch - len(batch))
            outs += self.ask(at, full)[: len(batch)]
        m = guide(self.guidance, outs)
        local = self.run_stage("guided", Pass(at.latent, at.columns, m))
        if (refined := self.flow.get("refined")) is not None:
            m = local[refined["call"]][refined["name"]]
            need(np.isfinite(m).all(), "the refined prediction is not finite")
        return m

    def latents(self) -> Iterator[Array]:
        """x after each pass; `self.outputs` of once calls are there."""
        table = self.table()
        noise = self.noise(table["passes"])
        start = self.flow.get("start")
        x = np.float64(np.float32(table["start"]["noise"])) * noise[:1]
        if start is not None:
            picture = self.source(start, list(noise[:1].shape), "prompt", None, {})
            x = x + np.float64(np.float32(table["start"]["picture"])) * picture
        x, past = x.astype(np.float32), []
        for i, p in enumerate(table["passes"]):
            past = [(x, self.guided_sum(p, x)), *past[:3]]
            total = np.zeros(x.shape, np.float64)
            for a, b, (old, m) in zip(p["x"], p["m"], past, strict=False):
                total += a * old.astype(np.float64) + b * m.astype(np.float64)
            if p["noise"]:
                total += p["noise"] * noise[i + 1 : i + 2].astype(np.float64)
            x = total.astype(np.float32)
            yield x

    def picture(self) -> tuple[list[Array], Array]:
        """x after each pass (none without a loop) and the picture, not clipped."""
        self.run_once()
        name, xs = self.flow["picture"], []
        if self.flow.get("prediction") is None:
            picture = self.outputs[name["call"], "prompt"][name["name"]]
        else:
            xs = list(self.latents())
            picture = self.run_stage("end", Pass(xs[-1]))[name["call"]][name["name"]]
        need(np.isfinite(picture).all(), "the picture is not finite")
        return xs, picture


class Bundle:
    """A trusted ONNX bundle and one of its tasks."""

    def __init__(self, root: Path, task: str | None) -> None:
        self.root, self.m = root, trusted(root)
        need(self.m["target"] == "onnx", f"target {self.m['target']}: this script runs ONNX only")
        tasks = {t["name"]: t for t in self.m["tasks"]}
        need(task in tasks or (task is None and len(tasks) == 1), f"--task: {sorted(tasks)}")
        self.task = tasks[task or next(iter(tasks))]
        self.parts = {p["name"]: p for p in self.m["parts"]}
        missing = {c["part"] for c in self.task["flow"]["calls"]} - set(self.parts)
        need(not missing, f"parts {sorted(missing)} are not in this bundle")
        self.constants = read_constants(root)
        records = {t["path"]: t for t in self.m["tokenizers"]}
        self.tokenizers = {path: Tokenizer(root / path, t) for path, t in records.items()}
        self.sessions: dict[str, ort.InferenceSession] = {}

    def run(self, name: str, feeds: Tensors) -> Tensors:
        """All outputs that the manifest names."""
        part = self.parts[name]
        if name not in self.sessions:
            file = self.root / part["path"] / part["entries"][self.task["name"]]
            options = ort.SessionOptions()
            options.log_severity_level = 3
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
            providers = ["CPUExecutionProvider"]
            self.sessions[name] = ort.InferenceSession(str(file), options, providers=providers)
        names = [o["name"] for o in part["outputs"]]
        outputs: Any = self.sessions[name].run(names, feeds)
        return dict(zip(names, outputs, strict=True))

    def loop(self, request: Request) -> Loop:
        def ids(path: str, text: str) -> Array:
            return self.tokenizers[path](text)

        return Loop(self.m, self.task, self.constants, self.run, ids, request)

    def read_inputs(self, pairs: list[tuple[str, str]]) -> dict[str, Any]:
        """Pictures, tensors and numbers of NAME=FILE or NAME=NUMBER."""
        inputs: dict[str, Any] = {"pictures": {}, "tensors": {}, "numbers": {}}
        h, w = self.m["image"]["height"], self.m["image"]["width"]
        for name, text in pairs:
            kinds = [k for k in inputs if name in (self.task["inputs"].get(k) or {})]
            need(kinds, f"{self.task['name']} takes no input {name!r}")
            if kinds[0] == "pictures":
                picture = self.task["inputs"]["pictures"][name]
                inputs["pictures"][name] = fit_picture(Image.open(text), picture, h, w)
            else:
                numbers = kinds[0] == "numbers"
                inputs[kinds[0]][name] = float(text) if numbers else np.load(text)
        return inputs


def to_png(picture: Array, path: Path) -> None:
    v = np.rint((picture[0].astype(np.float64).clip(-1, 1) + 1) * 127.5)  # halves to even
    Image.fromarray(v.astype(np.uint8).transpose(1, 2, 0).copy()).save(path)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("bundle", type=Path)
    for name in ("task", "prompt", "negative-prompt", "image", "mask"):
        p.add_argument(f"--{name}")
    p.add_argument("--input", action="append", default=[], metavar="NAME=FILE")
    p.add_argument("--noise", type=Path)
    p.add_argument("--steps", type=int)
    p.add_argument("--strength", type=float)
    p.add_argument("-o", "--out", type=Path, required=True)
    a = p.parse_args()
    bundle = Bundle(a.bundle, a.task)
    pairs = [tuple(text.split("=", 1)) for text in a.input]
    need(all(len(pair) == 2 for pair in pairs), "--input is NAME=FILE")
    pairs += [(name, getattr(a, name)) for name in ("image", "mask") if getattr(a, name)]
    loop = bundle.task["flow"].get("prediction") is not None
    request = Request(
        prompt=a.prompt,
        negative_prompt=a.negative_prompt,
        noise=np.load(a.noise) if a.noise else None,
        steps=a.steps or bundle.task["steps"] if loop else None,
        strength=a.strength or bundle.task.get("strength"),
        **bundle.read_inputs(pairs),
    )
    _, picture = bundle.loop(request).picture()
    to_png(picture, a.out)


if __name__ == "__main__":
    try:
        main()
    except ValueError as e:
        raise SystemExit(f"independent_loop.py: {e}") from e
