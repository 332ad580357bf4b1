"""A Core ML package on disk: written in canonical form, read as untrusted input.

    Unet.mlpackage/Manifest.json
    Unet.mlpackage/Data/com.apple.CoreML/model.mlmodel        the program, a protobuf
    Unet.mlpackage/Data/com.apple.CoreML/weights/weight.bin   blobs, each behind a 64-byte header

Formats: coremltools' ``Model.proto`` and ``MIL.proto``, and the MIL blob storage format 2.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mtu_export.spec import BundleError, Structure, TensorSpec, ToolchainMissing

ENTRY = "main"
"""The function of a package that holds a single task."""
COMPUTE_UNIT = "mtu_export.compute_unit"
"""Metadata key of this package that is not part of the identity."""
COMPUTE_UNITS = ("ALL", "CPU_AND_GPU", "CPU_AND_NE", "CPU_ONLY")
TOOLCHAIN_KEYS = "com.github.apple.coremltools."
AUTHOR = "com.apple.CoreML"
MODEL = f"{AUTHOR}/model.mlmodel"
WEIGHTS = f"{AUTHOR}/weights"
WEIGHT_FILE = f"{WEIGHTS}/weight.bin"
WEIGHT_URL = "@model_path/weights/weight.bin"

SENTINEL = 0xDEADBEEF
HEADER = struct.Struct("<IIQQ")  # sentinel, type, bytes, offset of the data
HEADER_BYTES = 64
STORAGE_VERSION = 2
BLOB_TYPES = {  # MIL type: (type in the blob header, bits of a value)
    "FLOAT16": (1, 16),
    "FLOAT32": (2, 32),
    "UINT8": (3, 8),
    "INT8": (4, 8),
    "INT16": (6, 16),
    "UINT16": (7, 16),
    "INT4": (8, 4),
    "UINT1": (9, 1),
    "UINT2": (10, 2),
    "UINT4": (11, 4),
    "UINT3": (12, 3),
    "UINT6": (13, 6),
    "INT32": (14, 32),
    "UINT32": (15, 32),
}
DESCRIBED_TYPES = {65552: "float16", 65568: "float32", 131104: "int32"}  # ArrayDataType
MANIFEST_LIMIT = 1 << 20
MODEL_LIMIT = (1 << 31) - 1

# ---------------------------------------------------------------------------------------- write


def seal(path: Path, metadata: Mapping[str, str]) -> None:
    """Rewrite the program and manifest of a new package in canonical form, with ``metadata``.

    Canonical form has no conversion date, map entries in sorted order, and item identifiers derived
    from their paths.
    """
    model = parse(path)
    description = model.description.metadata
    description.userDefined.pop(f"{TOOLCHAIN_KEYS}conversion_date", None)
    for key, value in metadata.items():
        description.userDefined[key] = value
    description.author = "mtu-export"
    description.shortDescription = "Exported by mtu-export"
    file = path / "Data" / MODEL
    file.write_bytes(model.SerializeToString(deterministic=True))
    file.chmod(0o644)
    items = {
        _identifier(item_path): {
            "author": AUTHOR,
            "description": f"CoreML Model {content}",
            "name": Path(item_path).name,
            "path": item_path,
        }
        for item_path, content in ((MODEL, "Specification"), (WEIGHTS, "Weights"))
    }
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": items,
        "rootModelIdentifier": _identifier(MODEL),
    }
    text = json.dumps(manifest, indent=4, sort_keys=True)
    (path / "Manifest.json").write_text(text + "\n", encoding="utf-8")


def _identifier(item_path: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, item_path)).upper()


# ----------------------------------------------------------------------------------------- read


def structure(path: Path, entry: str, model: Any = None) -> Structure:
    """The structure of the function ``entry``; ``operators`` counts those of all functions.

    ``model`` is the result of :func:`load`, if the caller already has it. Checks that every blob
    lies inside the weight file. Raises ``BundleError``.
    """
    model = load(path) if model is None else model
    functions = model.mlProgram.functions
    if entry not in functions:
        raise BundleError(
            f"{path.name}: no function {entry!r}; it has: {', '.join(sorted(functions)) or 'none'}"
        )
    blocks = {name: block(function, path.name) for name, function in functions.items()}
    operators = Counter(operator.type for body in blocks.values() for operator in _operators(body))
    with (path / "Data" / WEIGHT_FILE).open("rb") as weights:
        size = os.fstat(weights.fileno()).st_size
        if weights.read(8)[4:] != STORAGE_VERSION.to_bytes(4, "little"):
            raise BundleError(f"{path.name}: weight.bin is not of format {STORAGE_VERSION}")
        for value in values(model.mlProgram):
            if value.WhichOneof("value") == "blobFileValue":
                find_blob(value, weights, size, path.name)
    defined = {v.name: v for o in blocks[entry].operations for v in o.outputs}
    defined |= {v.name: v for v in functions[entry].inputs}
    inputs = tuple(_tensor_spec(value, path.name) for value in functions[entry].inputs)
    outputs = tuple(
        _tensor_spec(_output(defined, name, path.name), path.name) for name in blocks[entry].outputs
    )
    _check_description(model, entry, inputs, outputs, path.name)
    return Structure(
        inputs=inputs, outputs=outputs, operators=dict(operators), identity=_identity(model)
    )


def load(path: Path) -> Any:
    """The ``Model`` message of a package that holds exactly its three files.

    Raises ``BundleError``.
    """
    _check_files(path)
    return parse(path)


def compute_unit(path: Path) -> str:
    """The compute unit that the package was exported for."""
    unit = parse(path).description.metadata.userDefined.get(COMPUTE_UNIT, "ALL")
    if unit not in COMPUTE_UNITS:
        raise BundleError(f"{path.name}: unknown compute unit {unit!r}")
    return unit


def _identity(model: Any) -> dict[str, str]:
    return {
        key: value
        for key, value in sorted(model.description.metadata.userDefined.items())
        if key != COMPUTE_UNIT and not key.startswith(TOOLCHAIN_KEYS)
    }


def _check_files(path: Path) -> None:
    present: set[str] = set()
    if path.is_symlink() or not path.is_dir():
        raise BundleError(f"{path.name}: not a package folder")
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            file = Path(folder, name)
            mode = file.lstat().st_mode
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                raise BundleError(f"{path.name}: {file.relative_to(path)} is not a plain file")
            if stat.S_ISREG(mode):
                present.add(file.relative_to(path).as_posix())
    expected = {"Manifest.json", f"Data/{MODEL}", f"Data/{WEIGHT_FILE}"}
    for name in sorted(expected ^ present):
        raise BundleError(
            f"{path.name}: {name!r} is {'missing' if name in expected else 'not of the package'}"
        )
    _check_manifest(path)


def _check_manifest(path: Path) -> None:
    file = path / "Manifest.json"
    if file.stat().st_size > MANIFEST_LIMIT:
        raise BundleError(f"{path.name}: Manifest.json is over {MANIFEST_LIMIT} bytes")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        items = {key: item["path"] for key, item in manifest["itemInfoEntries"].items()}
        root = items[manifest["rootModelIdentifier"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BundleError(f"{path.name}: Manifest.json is malformed") from None
    if root != MODEL or sorted(map(str, items.values())) != [MODEL, WEIGHTS]:
        raise BundleError(f"{path.name}: Manifest.json names other items than program and weights")


def parse(path: Path) -> Any:
    """The package's ``Model`` message; raises ``BundleError`` unless it is an ML Program."""
    try:
        from coremltools.proto import Model_pb2
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError as error:
        raise ToolchainMissing(error.name or "coremltools", "coreml") from None
    file = path / "Data" / MODEL
    try:
        if file.stat().st_size > MODEL_LIMIT:
            raise BundleError(f"{path.name}: model.mlmodel is over 2 GB")
        model = Model_pb2.Model.FromString(file.read_bytes())  # pyright: ignore
    except OSError as error:
        raise BundleError(f"{path.name}: model.mlmodel: {error.strerror}") from None
    except DecodeError:
        raise BundleError(f"{path.name}: model.mlmodel is not a Core ML model") from None
    if model.WhichOneof("Type") != "mlProgram":
        raise BundleError(f"{path.name}: model.mlmodel is not an ML Program")
    return model


def block(function: Any, where: str) -> Any:
    """The block of a function that its operator set selects; raises ``BundleError``."""
    if function.opset not in function.block_specializations:
        raise BundleError(f"{where}: no block for operator set {function.opset!r}")
    return function.block_specializations[function.opset]


def _operators(block: Any) -> Iterator[Any]:
    for operator in block.operations:
        yield operator
        for inner in operator.blocks:
            yield from _operators(inner)


def values(message: Any) -> Iterator[Any]:
    """Every ``MIL.Value`` under a message, depth first."""
    if message.DESCRIPTOR.name == "Value":
        yield message
    for descriptor, field in message.ListFields():
        if descriptor.message_type is None:
            continue
        if descriptor.message_type.GetOptions().map_entry:
            if descriptor.message_type.fields_by_name["value"].message_type is None:
                continue
            children = field.values()
        else:
            children = (field,) if hasattr(field, "ListFields") else field
        for child in children:
            yield from values(child)


def find_blob(value: Any, weights: BinaryIO, size: int, where: str) -> tuple[int, int]:
    """Offset and length of a blob's data in the weight file of ``size`` bytes.

    Raises ``BundleError`` if the header or the data leave the file, or have another type.
    """
    blob = value.blobFileValue
    if blob.fileName != WEIGHT_URL:
        raise BundleError(f"{where}: weights in another file, {blob.fileName!r}")
    if blob.offset + HEADER_BYTES > size:
        raise BundleError(f"{where}: weight.bin ends before the blob at {blob.offset}")
    weights.seek(blob.offset)
    sentinel, kind, length, start = HEADER.unpack(weights.read(HEADER.size))
    if sentinel != SENTINEL:
        raise BundleError(f"{where}: weight.bin has no blob at {blob.offset}")
    shape, dtype = shape_of(value.type.tensorType, where)
    expected_kind, bits = BLOB_TYPES.get(dtype, (None, 0))
    if kind != expected_kind or length != (math.prod(shape) * bits + 7) // 8:
        raise BundleError(
            f"{where}: the blob at {blob.offset} is not {dtype.lower()} of {list(shape)}"
        )
    if start < HEADER_BYTES or start + length > size:
        raise BundleError(f"{where}: weight.bin ends before the data of the blob at {blob.offset}")
    return start, length


def shape_of(kind: Any, where: str) -> tuple[tuple[int, ...], str]:
    """Static shape and MIL type name of a ``MIL.TensorType``; raises ``BundleError``."""
    from coremltools.proto import MIL_pb2

    if any(size.WhichOneof("dimension") != "constant" for size in kind.dimensions):
        raise BundleError(f"{where}: a shape is not static")
    types = MIL_pb2.DataType.DESCRIPTOR.values_by_number  # pyright: ignore
    if kind.dataType not in types:
        raise BundleError(f"{where}: unknown data type {kind.dataType}")
    return tuple(size.constant.size for size in kind.dimensions), types[kind.dataType].name


def _output(defined: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in defined:
        raise BundleError(f"{where}: output {name!r} comes from no operator")
    return defined[name]


def _tensor_spec(value: Any, where: str) -> TensorSpec:
    shape, dtype = shape_of(value.type.tensorType, where)
    return TensorSpec(name=value.name, shape=shape, dtype=dtype.lower())


def _check_description(
    model: Any,
    entry: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    where: str,
) -> None:
    """Refuse a package whose description and program differ in functions, inputs or outputs."""
    names = [function.name for function in model.description.functions]
    if (names or len(model.mlProgram.functions) > 1) and (
        sorted(names) != sorted(model.mlProgram.functions)
        or model.description.defaultFunctionName not in names
    ):
        raise BundleError(f"{where}: description and program disagree on functions")
    by_name = {function.name: function for function in model.description.functions}
    described = by_name.get(entry) if by_name else model.description
    for name, specs in (("input", inputs), ("output", outputs)):
        features = () if described is None else getattr(described, name)
        if tuple(map(_described_spec, features)) != specs:
            raise BundleError(f"{where}: description and program disagree on {name}s")


def _described_spec(feature: Any) -> TensorSpec:
    array = feature.type.multiArrayType
    dtype = DESCRIBED_TYPES.get(array.dataType, "unknown")
    return TensorSpec(name=feature.name, shape=tuple(array.shape), dtype=dtype)
