"""Hashes of bundles, to show that a change of the code leaves what it exports alone.

Exports the tiny, the tiny SDXL and the embedded checkpoint to every target and scheme, of one task
and of four, and writes the SHA-256 of each file, of each graph without its metadata, and of each
tensor of goldens and constants. ``--against`` prints what differs from an earlier file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

SCHEMES = {
    "onnx": ("fp32", "fp16", "int8"),
    "coreml": ("fp32", "fp16", "int8"),
    "executorch": ("fp32", "int8"),
}
CHECKPOINTS = ("embedded", "tiny", "tiny-sdxl")
TASK, TASKS = "edit", ("t2i", "edit", "sr", "inpaint")


def main() -> None:
    """Hash every case that the state folder does not have yet, then compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="JSON with the hashes of every case")
    parser.add_argument("--state", type=Path, required=True, help="folder of the cases done so far")
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--against", type=Path, help="hashes of an earlier commit")
    args = parser.parse_args()
    args.state.mkdir(parents=True, exist_ok=True)
    for name, case in cases():
        path = args.state / f"{name}.json"
        if args.only in name and not path.exists():
            path.write_text(
                json.dumps(hashes(args.state, *case), indent=1, sort_keys=True), "utf-8"
            )
            print(name, flush=True)
    records = {path.stem: json.loads(path.read_text("utf-8")) for path in args.state.glob("*.json")}
    args.out.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n", "utf-8")
    if args.against:
        compare(json.loads(args.against.read_text("utf-8")), records)


def cases() -> Iterator[tuple[str, tuple[str, str, str, tuple[str, ...]]]]:
    """Name, and checkpoint, target, scheme and tasks, of each case."""
    for tasks in ((TASK,), TASKS):
        for checkpoint in CHECKPOINTS:
            for target, schemes in SCHEMES.items():
                for scheme in schemes:
                    name = f"{checkpoint}-{target}-{scheme}-{len(tasks)}"
                    yield name, (checkpoint, target, scheme, tasks)


def hashes(state: Path, model: str, target: str, scheme: str, tasks: tuple[str, ...]) -> Any:
    """Hashes of one export; an export that is refused is its refusal."""
    from mtu_export import MtuExportError, export, resolve

    source = None if model == "embedded" else str(_random(state / "checkpoints", model))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        try:
            export(resolve(target=target, model=source, task=tasks, scheme=scheme, out=out))
        except MtuExportError as error:
            return {"refused": str(error).replace(folder, "")}
        manifest = json.loads((out / "manifest.json").read_text("utf-8"))
        files = [path for path in sorted(out.rglob("*")) if path.is_file()]
        return {
            "files": {str(path.relative_to(out)): _sha(path.read_bytes()) for path in files},
            "content": {
                str(path.relative_to(out)): value for path in files for value in _content(path)
            },
            "tensors": {
                path.name: {name: _sha(_raw(array)) for name, array in load_file(path).items()}
                for path in sorted(out.glob("*.safetensors"))
            },
            "manifest": {
                key: _sha(json.dumps(value, sort_keys=True).encode())
                for key, value in manifest.items()
                if key not in ("created", "versions")
            },
        }


def _random(folder: Path, architecture: str) -> Path:
    from mtu_export.cli import app

    out = folder / architecture
    if not out.exists():
        command = ["upcycle", "--arch", architecture, "--random", "--seed", "0", str(out)]
        for task in TASKS:
            command += ["--task", task]
        app(command, standalone_mode=False)
    return out


def _content(path: Path) -> Iterator[str]:
    """Hash of what a file computes: a graph without metadata, any other artefact as it is."""
    if path.suffix == ".onnx":
        import onnx

        model = onnx.load(path, load_external_data=False)
        del model.metadata_props[:]
        yield _sha(model.SerializeToString(deterministic=True))
    elif path.suffix == ".mlmodel":
        from coremltools.proto import Model_pb2

        spec = Model_pb2.Model.FromString(path.read_bytes())  # type: ignore[attr-defined]
        spec.description.metadata.Clear()
        yield _sha(spec.SerializeToString(deterministic=True))
    elif path.suffix == ".pte":
        from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program

        data = path.read_bytes()
        program = _flatbuffer_to_program(data)
        program.execution_plan = [p for p in program.execution_plan if p.name != "_identity"]
        size = int.from_bytes(data[16:24], "little")  # of the flatbuffer, extended header "eh00"
        yield _sha(repr(program).encode() + data[size:].lstrip(b"\0"))
    elif path.suffix in (".bin", ".onnx_data"):
        yield _sha(path.read_bytes())


def _raw(array: np.ndarray) -> bytes:
    return f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def compare(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Print each value that differs, and how many are equal."""
    equal = 0
    for case in sorted(before.keys() | after.keys()):
        old, new = (dict(_flat(records.get(case, {}))) for records in (before, after))
        for name in sorted(old.keys() | new.keys()):
            equal += old.get(name) == new.get(name)
            if old.get(name) != new.get(name):
                state = "gone" if name not in new else "new" if name not in old else "differs"
                print(f"{case}: {name}: {state}")
    print(f"{equal} hashes are equal")


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}/{key}" if name else key)
    else:
        yield name, str(value)


if __name__ == "__main__":
    main()
