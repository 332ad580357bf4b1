"""``hostile.json``: edits of the bundle in runtime/testdata, and the rule that each breaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from mtu_export.bundle import CONSTANTS, GOLDENS, MANIFEST

Json = dict[str, Any]
NAN = "0000c07f"
"""A float32 that is not a number, little-endian."""


def put(*path: str | int, value: Any) -> Json:
    """Set a value of the manifest; an index one past the end of a list appends."""
    return {"op": "set", "path": list(path), "value": value}


def delete(*path: str | int) -> Json:
    """Delete a key or item of the manifest."""
    return {"op": "delete", "path": list(path)}


def text(old: str, new: str) -> Json:
    """Replace a text that is once in the manifest as it was exported."""
    return {"op": "text", "old": old, "new": new}


def on_file(op: str, path: str, **keys: Any) -> Json:
    """An edit of a file."""
    return {"op": op, "path": path, **keys}


def seal(path: str) -> Json:
    """Put size and hash of a file or folder into the manifest, as it is now."""
    return {"op": "seal", "path": path}


def onnx_model(*, location: str | None = None, nested: bool = False) -> str:
    """A small model in hexadecimal digits: with external data, or with a graph in a node."""
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    nodes = [helper.make_node("Identity", ["w"], ["y"])]
    if location is not None:
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "4")):
            weight.external_data.add(key=key, value=value)
    if nested:
        inner = helper.make_graph(nodes, "g", [], [y])
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)]
    graph = helper.make_graph(nodes, "g", [], [y], initializer=[weight])
    model: onnx.ModelProto = helper.make_model(graph, producer_name="")
    return model.SerializeToString().hex()


class Vectors:
    """The list, made for one bundle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        self.listed: list[Json] = []

    def add(self, rule: int, name: str, *edits: Json) -> None:
        """An edit that breaks a rule; 0: none."""
        self.listed.append({"rule": rule, "name": name, "edits": list(edits)})

    def file(self, path: str) -> int:
        """The index of an entry of ``files``."""
        return [f["path"] for f in self.manifest["files"]].index(path)

    def part(self, name: str) -> int:
        """The index of a part."""
        return [p["name"] for p in self.manifest["parts"]].index(name)

    def at(self, file: str, text: bytes) -> int:
        """Where the first such bytes are in a file."""
        return (self.folder / file).read_bytes().index(text)

    def legal(self) -> None:
        """What every reader takes."""
        self.add(0, "as it was exported")
        self.add(0, "a greater minor version", put("schema_version", value="2.9"))
        self.add(0, "an unknown key", put("later", value={"x": [1]}))
        self.add(0, "an unknown key of a part", put("parts", 0, "later", value=None))
        self.add(0, "a whole number with a point", text('"height": 32', '"height": 32.0'))
        self.add(0, "a file that nothing names", on_file("write", "later.txt", hex="00"))
        self.add(0, "a file of macOS in a part", on_file("write", "unet/.DS_Store", hex="00"))
        encoder = ("parts", self.part("text_encoder"))
        none = put("tokenizers", value=[])
        self.add(
            0, "a text encoder that was not exported, nor its tokenizer", delete(*encoder), none
        )

    def json_rules(self) -> None:
        """Rules 1 to 3."""
        version = '"schema_version": "2.0"'
        self.add(1, "a key twice", text(version, f"{version}, {version}"))
        self.add(1, "not a number", text('"height": 32', '"height": NaN'))
        self.add(1, "beyond a double", text('"factor": 8', '"factor": 1e999'))
        self.add(1, "half a surrogate pair", text(version, f'{version}, "x": "\\ud800"'))
        self.add(1, "65 deep", text(version, f'{version}, "x": {"[" * 64}{"]" * 64}'))
        self.add(1, "no object", on_file("write", MANIFEST, hex=b"[]".hex()))
        self.add(1, "not UTF-8", on_file("flip", MANIFEST, at=1, bit=7))
        self.add(1, "too long", on_file("pad", MANIFEST, bytes=4_000_001))
        self.add(1, "cut off", on_file("truncate", MANIFEST, bytes=1000))
        link = on_file("link", MANIFEST, to="other.json")
        self.add(1, "a link", on_file("rename", MANIFEST, to="other.json"), link)
        self.add(1, "missing", on_file("rename", MANIFEST, to="other.json"))
        self.add(2, "an earlier version", put("schema_version", value="1.3"))
        self.add(2, "a later version", put("schema_version", value="3.0"))
        self.add(2, "no minor version", put("schema_version", value="2"))
        self.add(2, "a version that is a number", put("schema_version", value=2.0))
        call, task = ("tasks", 0, "flow", "calls", 0), ("tasks", 0)
        self.add(3, "an unknown key of a call", put(*call, "later", value=1))
        self.add(3, "an unknown key of a request", put(*task, "inputs", "later", value={}))
        self.add(3, "an unknown stage", put(*call, "when", value="often"))
        self.add(3, "no tasks", put("tasks", value=[]))
        self.add(3, "steps as text", put(*task, "steps", value="4"))
        self.add(3, "a truth value for a number", put(*task, "steps", value=True))
        self.add(3, "half a step", put(*task, "steps", value=4.5))
        self.add(3, "three coefficients", delete("loop", "schedules", 0, "passes", 0, "x", 3))
        self.add(3, "a missing key", delete("image"))
        self.add(3, "a line break after a name", put(*task, "name", value="edit\n"))

    def file_rules(self) -> None:
        """Rules 4 to 7."""
        path = ("parts", self.part("unet"), "path")
        self.add(4, "out of the folder", put(*path, value="../edit-onnx-int8/unet"))
        self.add(4, "a step that stays", put(*path, value="./unet"))
        self.add(4, "a backslash", put(*path, value="unet\\"))
        self.add(4, "absent", on_file("rename", "unet", to="elsewhere"))
        link = on_file("link", "unet", to="elsewhere")
        self.add(4, "a link", on_file("rename", "unet", to="elsewhere"), link)
        inner = on_file("link", "unet/more.onnx", to="model.onnx")
        self.add(4, "a link in a folder", inner)
        files, constants = self.manifest["files"], self.file(CONSTANTS)
        self.add(5, "a path twice", put("files", len(files), value=files[constants]))
        nested = {**files[constants], "path": "tokenizer/vocab.json"}
        self.add(5, "a path within another", put("files", len(files), value=nested))
        tokenizer = self.manifest["tokenizers"][0]
        self.add(5, "a tokenizer twice", put("tokenizers", 1, value=tokenizer))
        self.add(6, "another size", on_file("truncate", "unet/model.onnx", bytes=1000))
        self.add(6, "another bit", on_file("flip", "unet/model.onnx", at=100_000, bit=0))
        self.add(6, "another bit of a file", on_file("flip", CONSTANTS, at=2000, bit=3))
        self.add(6, "one file more", on_file("write", "unet/more.txt", hex=""))
        renamed = on_file("rename", "tokenizer/merges.txt", to="tokenizer/merge.txt")
        self.add(6, "another name", renamed)
        capital = self.manifest["parts"][0]["sha256"].translate(str.maketrans("abcdef", "bcdefa"))
        self.add(6, "another hash", put("parts", 0, "sha256", value=capital))
        for name in ("tokenizer", GOLDENS, CONSTANTS):
            self.add(7, f"{name} without a hash", delete("files", self.file(name)))
        self.add(7, "weights without a hash", put("parts", 0, "data", value=["weights.bin"]))

    def name_rules(self) -> None:
        """Rules 8 and 9."""
        unet, encoder = self.part("unet"), self.part("vae_encoder")
        calls, part = ("tasks", 0, "flow", "calls"), ("parts", unet)
        flow = self.manifest["tasks"][0]["flow"]
        self.add(8, "a part twice", put(*part, "name", value="vae_encoder"))
        self.add(8, "a call twice", put(*calls, 1, "id", value=flow["calls"][0]["id"]))
        task = self.manifest["tasks"][0]
        self.add(8, "a task twice", put("tasks", 1, value=task))
        self.add(8, "an entry of no task", put(*part, "entries", "other", value="model.onnx"))
        unused = [put(*part, "name", value="denoiser")]
        self.add(8, "a part that nothing calls", *unused)
        renamed = put(*calls, 2, "part", value="pipeline")
        self.add(8, "a part of this name", put(*part, "name", value="pipeline"), renamed)
        table = self.manifest["loop"]["schedules"]
        self.add(8, "a table twice", put("loop", "schedules", len(table), value=table[0]))
        self.add(8, "an entry elsewhere", put(*part, "entries", "edit", value="../unet/model.onnx"))
        self.add(8, "an entry that is absent", put(*part, "entries", "edit", value="other.onnx"))
        self.add(8, "an entry of macOS", put(*part, "entries", "edit", value="._model.onnx"))
        inputs = self.manifest["parts"][unet]["inputs"]
        self.add(8, "an input twice", put(*part, "inputs", len(inputs), value=inputs[0]))
        turned = put(*part, "task_inputs", value={"edit": inputs[::-1]})
        self.add(8, "inputs in another order", turned)
        self.add(8, "a witness of no task", put("parts", encoder, "witness", value={"x": [1]}))
        for name, location in (
            ("weights elsewhere", "../constants.safetensors"),
            ("absent weights", "weights.bin"),
        ):
            model = on_file("write", "unet/model.onnx", hex=onnx_model(location=location))
            self.add(8, name, model, seal("unet"))
        passes = ("loop", "schedules", 0, "passes")
        self.add(9, "x before the start", put(*passes, 0, "x", 1, value=0.5))
        self.add(9, "m before the start", put(*passes, 2, "m", 3, value=-0.25))
        self.add(9, "no timestep", delete(*passes, 1, "columns", "timestep"))
        self.add(9, "timesteps in a list", put(*passes, 1, "columns", "timestep", value=[1]))
        picture = put("loop", "schedules", 0, "start", "picture", value=0.5)
        self.add(9, "a start without a strength", picture)

    def tensor_rules(self) -> None:
        """Rules 10 and 13."""
        constants, goldens = seal(CONSTANTS), seal(GOLDENS)
        begin = 8 + int.from_bytes((self.folder / CONSTANTS).read_bytes()[:8], "little")
        self.add(10, "NaN", on_file("bytes", CONSTANTS, at=begin, hex=NAN), constants)
        golden = 8 + int.from_bytes((self.folder / GOLDENS).read_bytes()[:8], "little")
        header = json.loads((self.folder / GOLDENS).read_bytes()[8:golden])
        at = golden + header["loop/edit/picture"]["data_offsets"][0]
        self.add(10, "NaN, a golden", on_file("bytes", GOLDENS, at=at, hex=NAN), goldens)
        at = self.at(CONSTANTS, b'"F32"')
        dtype = on_file("bytes", CONSTANTS, at=at, hex=b'"F16"'.hex())
        self.add(10, "another dtype", dtype, constants)
        longer = on_file("bytes", CONSTANTS, at=0, hex="ffffffff00000000")
        self.add(10, "a header beyond the file", longer, constants)
        self.add(10, "cut off", on_file("truncate", CONSTANTS, bytes=begin + 4), constants)
        self.add(10, "cut off, goldens", on_file("truncate", GOLDENS, bytes=golden + 4), goldens)
        shape, turned = b"[1,4,4,6]", b"[1,4,6,4]"
        swapped = on_file("bytes", GOLDENS, at=self.at(GOLDENS, shape), hex=turned.hex())
        self.add(10, "a golden of another shape", swapped, goldens)
        self.add(13, "a part too large", put("parts", 0, "bytes", value=64_000_000_001))
        index = self.file(CONSTANTS)
        self.add(13, "a file too large", put("files", index, "bytes", value=256_000_001))
        model = on_file("write", "unet/model.onnx", hex=onnx_model(nested=True))
        self.add(13, "a graph in a node", model, seal("unet"))

    def flow_rules(self) -> None:
        """Rules 11 and 12."""
        flow = self.manifest["tasks"][0]["flow"]
        calls, flow_path = ("tasks", 0, "flow", "calls"), ("tasks", 0, "flow")
        sample = (*calls, 2, "inputs", "sample")
        latent, column = {"kind": "latent"}, {"kind": "column", "name": "timestep"}
        self.add(11, "calls out of order", put(*calls, value=flow["calls"][::-1]))
        image = (*calls, 1, "inputs", "sample", "sources", 0)
        self.add(11, "a latent before the loop", put(*image, value=latent))
        self.add(
            11,
            "a column after the loop",
            put(*calls, 3, "inputs", "latent_sample", "sources", 0, value=column),
        )
        self.add(11, "an input without a value", delete(*calls, 2, "inputs", "timestep"))
        other = {"sources": [column]}
        self.add(11, "a value of no input", put(*calls, 2, "inputs", "time", value=other))
        self.add(11, "a picture that nobody gives", put(*image, "name", value="photo"))
        self.add(11, "a mask that is none", put(*image, "outside", value="image"))
        self.add(
            11, "a tensor that nobody gives", put(*image, value={"kind": "tensor", "name": "image"})
        )
        self.add(
            11, "an output of a later call", put(*sample, "sources", 1, "call", value="vae_decoder")
        )
        self.add(11, "an output of itself", put(*sample, "sources", 1, "call", value="unet"))
        self.add(11, "an output that is none", put(*sample, "sources", 1, "name", value="other"))
        self.add(11, "several sources without an axis", delete(*sample, "axis"))
        self.add(11, "an axis of one source", put(*calls, 2, "inputs", "timestep", "axis", value=1))
        self.add(11, "branches before the loop", put(*image, "only", value="prompt"))
        self.add(11, "multiply and divide", put(*sample, "sources", 1, "divide", value=2.0))
        both = {"kind": "picture", "name": "image", "every": 8, "mean": 8}
        self.add(11, "every and mean", put(*image, value=both))
        empty = put(*calls, 0, "inputs", "input_ids", "empty", value="empty/encoder_hidden_states")
        self.add(11, "empty before the loop", empty)
        tokens = (*calls, 0, "inputs", "input_ids", "sources", 0, "tokenizer")
        self.add(11, "a tokenizer that is none", put(*tokens, value="tokenizer_2"))
        self.add(
            11, "a prediction after the loop", put(*flow_path, "prediction", value=flow["picture"])
        )
        self.add(
            11, "a picture within the loop", put(*flow_path, "picture", value=flow["prediction"])
        )
        self.add(11, "a loop without a prediction", delete(*flow_path, "prediction"))
        self.add(
            11,
            "a start without a strength",
            put(*flow_path, "start", value={"kind": "picture", "name": "image"}),
        )
        self.add(11, "a strength without a start", put("tasks", 0, "strength", value=0.5))
        limits = {"amount": {"default": 3, "minimum": 0, "maximum": 2}}
        self.add(11, "a default out of range", put("tasks", 0, "inputs", "numbers", value=limits))
        unet = ("parts", self.part("unet"))
        self.add(12, "channels too few", put(*unet, "inputs", 0, "shape", 1, value=7))
        self.add(12, "another prediction", put(*unet, "outputs", 0, "shape", 1, value=5))
        self.add(12, "another batch", put(*unet, "inputs", 0, "shape", 0, value=2))
        self.add(
            12,
            "another picture",
            put("parts", self.part("vae_decoder"), "outputs", 0, "shape", 3, value=40),
        )
        self.add(
            12,
            "ids in float32",
            put("parts", self.part("text_encoder"), "inputs", 0, "dtype", value="float32"),
        )
        self.add(12, "an axis that does not join", put(*sample, "axis", value=2))
        self.add(12, "a scaled text", put(*tokens[:-1], "multiply", value=2.0))
        missing = put(*calls, 2, "inputs", "encoder_hidden_states", "empty", value="empty/other")
        self.add(12, "a constant that is none", missing)
        self.add(
            12,
            "a column that is none",
            put(*calls, 2, "inputs", "timestep", "sources", 0, "name", value="time"),
        )
        self.add(12, "no table", put("loop", "schedules", value=[]))
        self.add(12, "no latent", delete("latent"))
        self.add(12, "a factor that does not divide", put("latent", "factor", value=7))
        self.add(12, "another length of the prompt", put("tokenizers", 0, "length", value=76))


def make(folder: Path) -> list[Json]:
    """The list for the bundle in a folder."""
    vectors = Vectors(folder)
    vectors.legal()
    vectors.json_rules()
    vectors.file_rules()
    vectors.name_rules()
    vectors.tensor_rules()
    vectors.flow_rules()
    return vectors.listed
