"""runtime/testdata, read as its page says: edits of a bundle, parts of closed form."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Json = dict[str, Any]
TESTDATA = Path(__file__).parents[2] / "runtime" / "testdata"


def read(name: str) -> Any:
    """A JSON file of testdata."""
    return json.loads((TESTDATA / name).read_text("utf-8"))


# ------------------------------------------------------------------------------------- edits


def hashed(path: Path) -> tuple[int, str]:
    """Size and hash of a file or folder, by rule 6."""
    if path.is_file():
        return path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    files = {f.relative_to(path).as_posix(): f for f in path.rglob("*") if f.is_file()}
    lines = [f"{hashed(files[name])[1]}  {name}\n" for name in sorted(files)]
    size = sum(f.stat().st_size for f in files.values())
    return size, hashlib.sha256("".join(lines).encode()).hexdigest()


def _in_manifest(manifest: Json, edit: Json, folder: Path) -> None:
    if edit["op"] == "seal":
        records = [*manifest["parts"], *manifest["files"]]
        (record,) = (each for each in records if each["path"] == edit["path"])
        record["bytes"], record["sha256"] = hashed(folder / edit["path"])
        return
    *path, last = edit["path"]
    node: Any = manifest
    for step in path:
        node = node[step]
    if edit["op"] == "delete":
        del node[last]
    elif isinstance(node, list) and last == len(node):
        node.append(edit["value"])
    else:
        node[last] = edit["value"]


def _in_file(path: Path, edit: Json) -> None:
    op = edit["op"]
    if op == "write":
        path.write_bytes(bytes.fromhex(edit["hex"]))
    elif op == "rename":
        path.rename(path.parent / edit["to"].rpartition("/")[2])
    elif op == "link":
        path.symlink_to(edit["to"])
    else:
        data = bytearray(path.read_bytes())
        if op == "flip":
            data[edit["at"]] ^= 1 << edit["bit"]
        elif op == "bytes":
            new = bytes.fromhex(edit["hex"])
            data[edit["at"] : edit["at"] + len(new)] = new
        elif op == "pad":
            data += b" " * (edit["bytes"] - len(data))
        else:
            assert op == "truncate"
            del data[edit["bytes"] :]
        path.write_bytes(data)


def edited(case: Json, out: Path) -> Path:
    """A copy of the bundle with the edits of a case of ``hostile.json``."""
    folder = out / "edit-onnx-int8"
    shutil.copytree(TESTDATA / folder.name, folder)
    manifest = folder / "manifest.json"
    for edit in case["edits"]:
        if edit["op"] == "text":
            text = manifest.read_text("utf-8")
            assert text.count(edit["old"]) == 1
            manifest.write_text(text.replace(edit["old"], edit["new"]), "utf-8")
        elif edit["op"] in ("set", "delete", "seal"):
            document = json.loads(manifest.read_text("utf-8"))
            _in_manifest(document, edit, folder)
            manifest.write_text(json.dumps(document), "utf-8")
        else:
            _in_file(folder / edit["path"], edit)
    return folder


# ------------------------------------------------------------------------------- closed form

Run = Callable[[str, dict[str, np.ndarray]], dict[str, np.ndarray]]


def closed_form(parts: list[Json]) -> Run:
    """The parts of ``loops.json``, one number at a time."""

    def run(name: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (part,) = (part for part in parts if part["name"] == name)
        shapes = {i["name"]: tuple(i["shape"]) for i in part["inputs"]}
        assert {k: v.shape for k, v in feeds.items()} == shapes, name
        dtypes = {i["name"]: i["dtype"] for i in part["inputs"]}
        assert {k: str(v.dtype) for k, v in feeds.items()} == dtypes, name
        outputs = {}
        for j, output in enumerate(part["outputs"]):
            batch, count = output["shape"][0], math.prod(output["shape"][1:])
            array = np.zeros((batch, count))
            for k, spec in enumerate(part["inputs"]):
                rows = feeds[spec["name"]].reshape(spec["shape"][0], -1).tolist()
                for b in range(batch):
                    row = rows[b] if len(rows) > 1 else rows[0]
                    for t in range(max(len(row), count)):
                        term = row[t % len(row)] * math.cos(t + k + 7 * j)
                        array[b, t % count] += spec["weight"] * term
            outputs[output["name"]] = np.tanh(array).astype(np.float32).reshape(output["shape"])
        return outputs

    return run
