"""Convert weights of another layout to a checkpoint of format 1, tensor by tensor.

A map (``checkpoint.maps``) says which source tensor becomes which target tensor. Every source
tensor must be mapped or dropped, and every tensor of format 1 written once, with its exact shape.
Tensors keep their dtype and are memory-mapped: one shard of the output is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtu_export import checkpoint
from mtu_export.authoring.adopt.fitting import expert_widths, fit
from mtu_export.checkpoint import Header
from mtu_export.checkpoint.maps import mapping
from mtu_export.checkpoint.maps.building import build
from mtu_export.checkpoint.maps.layout import Layout, TargetTensor, arrange
from mtu_export.graph.tensors import is_finite
from mtu_export.models.mtu import config as mtu_config
from mtu_export.models.mtu import network as mtu
from mtu_export.models.mtu import presets
from mtu_export.models.mtu.presets import TASKS
from mtu_export.models.pipeline import files as pipeline_files
from mtu_export.models.pipeline import unet_config
from mtu_export.models.pipeline.layout import UNET
from mtu_export.spec import CheckpointError, MissingWeights, PlanError, UnknownName
from mtu_export.storage.draft import CHECKPOINT, draft

_SUFFIX = ".safetensors"
_INDEX = ".safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class Adoption:
    """A source with its map applied: the checkpoint's config and the arranged tensors.

    ``expected`` are the tensors of format 1 for that config: name -> shape.
    """

    source: Path
    map: Path
    config: Mapping[str, Any]
    headers: Mapping[str, Header]
    layout: Layout
    expected: Mapping[str, tuple[int, ...]]

    def check(self) -> None:
        """Raise ``MissingWeights`` with the layout's problems, in one line."""
        problems = self.layout.problems
        if problems:
            more = f"; and {len(problems) - 6} more problems" if len(problems) > 6 else ""
            raise MissingWeights(f"{self.map} does not fit: {'; '.join(problems[:6])}{more}")

    def table(self) -> list[list[str]]:
        """The rows that ``--dry-run`` prints: source, dtype and shape, operations, target, shape.

        Mapped tensors come first, then what is dropped, left over and missing.
        """
        rows = [["source", "stored", "operations", "target", "shape"]]
        for tensor in self.layout.tensors.values():
            shape, expected = str(list(tensor.shape)), self.expected.get(tensor.name)
            if expected != tensor.shape:
                shape += " (not in format 1)" if expected is None else f" (needs {list(expected)})"
            if tensor.constant is not None:
                source = f"(constant {tensor.constant})"
                rows.append([source, tensor.dtype, "", tensor.name, shape])
            for piece in tensor.pieces:
                operations = ", ".join(piece.operations) or "as it is"
                stored = self._stored(piece.source)
                rows.append([piece.source, stored, operations, tensor.name, shape])
        unmapped = [(name, "(dropped)") for name in self.layout.dropped]
        unmapped += [(name, "(its rule does not fit)") for name in self.layout.misfit]
        unmapped += [(name, "(no rule takes it)") for name in self.layout.leftover]
        rows += [[name, self._stored(name), "", reason, ""] for name, reason in unmapped]
        for name in self._missing():
            rows.append(["(nothing)", "", "", name, str(list(self.expected[name]))])
        return rows

    def _missing(self) -> list[str]:
        return [name for name in self.expected if name not in self.layout.tensors]

    def _stored(self, source: str) -> str:
        header = self.headers[source]
        return f"{header.dtype} {list(header.shape)}"

    def to_json(self) -> dict[str, Any]:
        """The mapping as ``--json`` prints it."""
        tensors = list(self.layout.tensors.values())
        return {
            "mapped": [self._mapped(tensor) for tensor in tensors if tensor.constant is None],
            "filled": [
                {"target": tensor.name, "shape": list(tensor.shape), "value": tensor.constant}
                for tensor in tensors
                if tensor.constant is not None
            ],
            "dropped": self.layout.dropped,
            "leftover": [*self.layout.misfit, *self.layout.leftover],
            "missing": self._missing(),
            "problems": self.layout.problems,
        }

    def _mapped(self, tensor: TargetTensor) -> dict[str, Any]:
        expected = self.expected.get(tensor.name)
        return {
            "target": tensor.name,
            "shape": list(tensor.shape),
            "needs": None if expected is None else list(expected),
            "dtype": tensor.dtype,
            "sources": [
                {
                    "source": piece.source,
                    "shape": list(self.headers[piece.source].shape),
                    "operations": list(piece.operations),
                }
                for piece in tensor.pieces
            ],
        }


def survey(weights: str | Path, map_file: Path, revision: str | None = None) -> Adoption:
    """Apply a map to weights by their names and shapes; reads headers and JSON alone.

    ``weights`` is a safetensors file, a folder with safetensors, a pipeline folder, or a hub id
    with its ``revision``, which the config records.
    Tensors that do not fit are collected in the layout's problems. Raises ``PlanError`` for
    mistakes in the map itself and ``CheckpointError`` for files that cannot be read.
    """
    tensor_map = mapping.read(map_file)
    source = _source(weights, revision)
    headers = _headers(source)
    config = _config(source, tensor_map, map_file)
    config.update(checkpoint.source_keys(weights, source))
    layout = arrange(tensor_map, headers, [task["name"] for task in config["tasks"]])
    try:
        expected = _expected(config, expert_widths(layout, config["num_experts"]))
    except CheckpointError as error:
        reason = str(error).removeprefix("unet/config.json ")
        raise PlanError(f"{map_file}: config {reason}") from None
    fit(tensor_map, layout, expected)
    return Adoption(
        source=source,
        map=map_file,
        config=config,
        headers=headers,
        layout=layout,
        expected=expected,
    )


def write(adoption: Adoption, out: Path, *, force: bool = False) -> None:
    """Write the checkpoint, whole or not at all, and read it back before it is published.

    A pipeline's other parts and the licences beside the weights are copied. Raises
    ``MissingWeights`` (tensors left over, NaN), ``CheckpointError`` and ``PlanError``.
    """
    adoption.check()
    source = adoption.source
    if source.is_dir() and source.resolve() in out.resolve().parents:
        raise PlanError(f"output {str(out)!r} lies inside the source {str(source)!r}")
    index = pipeline_files.read(source) if (source / UNET).is_dir() else {}
    with draft(out, force=force, marker=CHECKPOINT, sources=[source, adoption.map]) as folder:
        checkpoint.write(folder / UNET, adoption.config, _tensors(adoption))
        written = checkpoint.headers(folder / UNET)
        mtu_config.check_config(mtu_config.read_config(folder), mtu.STOCK_KEYS)
        checkpoint.compare(written, adoption.expected)
        pipeline_files.copy(source if source.is_dir() else source.parent, folder, index)
        pipeline_files.write_index(folder, index)


def adopt(weights: str | Path, out: Path, map_file: Path, *, force: bool = False) -> Adoption:
    """Make a checkpoint of format 1 of ``weights``: :func:`survey`, then :func:`write`."""
    adoption = survey(weights, map_file)
    write(adoption, out, force=force)
    return adoption


# ---------------------------------------------------------------------------------------- source


def _source(weights: str | Path, revision: str | None) -> Path:
    try:
        path = Path(weights).expanduser()
        if path.is_file() or path.name.endswith(_SUFFIX):
            checkpoint.refuse_revision(path, revision)
            return path
    except (OSError, RuntimeError) as error:  # too long, or ~nobody
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"no weights at {str(weights)[:200]!r}: {reason}") from None
    return checkpoint.locate(weights, revision)


def _unet_folder(source: Path) -> Path:
    """The folder that holds the UNet's weights and its config."""
    if not source.is_dir():
        return source.parent
    return source / UNET if (source / UNET).is_dir() else source


def _files(source: Path) -> tuple[Path, ...]:
    """The one file, or the shards of the one index, of a source."""
    if not source.is_dir():
        if not source.is_file():
            raise CheckpointError(f"{source} is missing")
        return (source,)
    folder = _unet_folder(source)
    stems = {
        path.name.removesuffix(_INDEX) for path in folder.glob(f"*{_INDEX}") if path.name[0] != "."
    }
    shards = {path for stem in stems for path in checkpoint.weight_files(folder, stem)}
    single = {path for path in folder.glob(f"*{_SUFFIX}") if path.name[0] != "."} - shards
    stems |= {path.name.removesuffix(_SUFFIX) for path in single}
    if len(stems) > 1:
        names = ", ".join(sorted(stems)[:6])
        raise CheckpointError(f"{folder} has weights of several names ({names}); name one file")
    return checkpoint.weight_files(folder, stems.pop() if stems else checkpoint.WEIGHTS)


def _headers(source: Path) -> dict[str, Header]:
    """Every tensor of a source, of any dtype: some are dropped later."""
    headers: dict[str, Header] = {}
    for file in _files(source):
        for name, header in checkpoint.file_headers(file, dtypes=None).items():
            if name in headers:
                other = headers[name].file.name
                raise CheckpointError(f"{file}: tensor {name!r} is also in {other}")
            headers[name] = header
    return headers


# ---------------------------------------------------------------------------------------- config


def _config(source: Path, tensor_map: mapping.Map, map_file: Path) -> dict[str, Any]:
    """The config beside the weights, updated by the map's; null there removes a foreign key."""
    beside = _unet_folder(source) / "config.json"
    config = checkpoint.read_json(beside) if beside.is_file() else {}
    config = unet_config.without_training_keys(config)
    legal = {*mtu_config.MTU_KEYS, *mtu.STOCK_KEYS}
    config = {**config, **tensor_map.config}
    foreign = [key for key, value in config.items() if key not in legal and value is None]
    legal.add(mtu_config.RESCALE)
    config = {
        key: value
        for key, value in config.items()
        if key in legal or not (key.startswith("_") or key in foreign)
    }
    unknown = [key for key in config if key not in legal]
    if unknown:
        raise PlanError(
            f"{map_file}: the config has keys that format 1 does not know: "
            f"{', '.join(key[:80] for key in unknown)}; null in the map's config leaves one out"
        )
    config = {"mtu_format": mtu_config.FORMAT, "task_norm": "replace", **config}
    config["_class_name"] = "MTUUNet2DConditionModel"
    try:
        config["tasks"] = _tasks(config)
        mtu_config.check_config(config, mtu.STOCK_KEYS)
    except CheckpointError as error:
        reason = str(error).removeprefix("unet/config.json: ")
        raise PlanError(f"{map_file}: config: {reason}") from None
    return config


def _tasks(config: Mapping[str, Any]) -> list[Any]:
    """The config's tasks as task objects, with the names of presets resolved."""
    entries = config.get("tasks")
    if not isinstance(entries, list) or not entries:
        raise CheckpointError("tasks must be a list of task objects and preset names")
    for entry in entries:
        if isinstance(entry, str) and entry not in TASKS:
            raise UnknownName("task preset", entry, [*TASKS, "a task object"])
    resolved = [
        presets.resolve_tasks([entry], config)[0].to_json() if isinstance(entry, str) else entry
        for entry in entries
    ]
    return [
        mtu_config.task_from_json(entry, index, f"tasks[{index}]").to_json()
        for index, entry in enumerate(resolved)
    ]


def _expected(
    config: Mapping[str, Any], widths: Mapping[str, Mapping[int, int]]
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of format 1 for a config.

    Experts of unknown width get that of the first known expert of their block.
    """
    number = config["num_experts"]
    expert_widths = {
        path: tuple(block.get(i, next(iter(block.values()))) for i in range(number))
        for path, block in widths.items()
    }
    with mtu.as_checkpoint_error(), torch.device("meta"):
        model = mtu.MTUUNet2DConditionModel.from_config(dict(config), expert_widths=expert_widths)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


# --------------------------------------------------------------------------------------- tensors


def _tensors(adoption: Adoption) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of format 1 in turn; refuses NaN and Inf by name."""
    for name in adoption.expected:
        target = adoption.layout.tensors[name]
        value = build(target, adoption.headers)
        if not is_finite(value):
            sources = ", ".join(repr(piece.source) for piece in target.pieces[:3])
            raise MissingWeights(f"tensor {name!r} (from {sources}) holds NaN or Inf")
        yield name, value
