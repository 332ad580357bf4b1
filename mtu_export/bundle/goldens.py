"""``goldens.safetensors`` and ``constants.safetensors``, read one tensor at a time.

Names of goldens are ``<part>/<task>/<case>/<tensor>`` and ``loop/<task>/<tensor>``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtu_export.bundle.paths import GOLDENS, inside
from mtu_export.spec import Arrays, BundleError

if TYPE_CHECKING:
    from mtu_export.bundle import Bundle
    from mtu_export.spec import TensorSpec

CONSTANTS = "constants.safetensors"
CASES = 3
"""Golden cases of a part and task."""
LARGEST_HEADER = 4_000_000
"""Bytes of the header of a safetensors file."""
LARGEST_CONSTANTS = 256_000_000
"""Bytes of ``constants.safetensors``: all of it is held in memory."""
_LOOP = "loop"
_DTYPES = {"F32": "float32", "I32": "int32"}

Shape = tuple[int, ...]
Cases = Sequence[tuple[Arrays, Arrays]]


# --------------------------------------------------------------------------------------- write


def write_goldens(
    folder: Path, parts: Mapping[str, Cases], loops: Mapping[str, Arrays] | None = None
) -> None:
    """Write inputs and reference outputs.

    ``parts`` maps ``part/task`` to cases, ``loops`` a task to the tensors of its loop.
    """
    tensors = {
        f"{key}/{number}/{name}": value
        for key, cases in parts.items()
        for number, case in enumerate(cases)
        for arrays in case
        for name, value in arrays.items()
    }
    for task, arrays in (loops or {}).items():
        tensors |= {f"{_LOOP}/{task}/{name}": value for name, value in arrays.items()}
    save_tensors(tensors, folder / GOLDENS)


def write_constants(folder: Path, constants: Arrays) -> None:
    """Write what does not depend on the user's prompt: embeddings of fixed prompts, sizes."""
    save_tensors(constants, folder / CONSTANTS)


def save_tensors(tensors: Arrays, path: Path) -> None:
    """Write a safetensors file."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)


# ---------------------------------------------------------------------------------------- read


class Tensors(Mapping[str, np.ndarray]):
    """Tensors of a safetensors file whose names begin with ``prefix``, by the rest of the name.

    Each is read on access: finite float32 or int32, of the shape that ``shape_of``
    says; names for which that is None are ignored. Raises ``BundleError``.
    """

    def __init__(
        self, path: Path, prefix: str = "", shape_of: Callable[[str], Shape | None] | None = None
    ) -> None:
        from safetensors import SafetensorError, safe_open

        self.path, self.prefix, self.shape_of = path, prefix, shape_of
        try:
            with path.open("rb") as stream:
                header = int.from_bytes(stream.read(8), "little")
            if header > LARGEST_HEADER:
                raise ValueError(f"a header of {header:,} bytes; at most {LARGEST_HEADER:,}")
            self._file: Any = safe_open(path, "np")  # closed with its last reference
            self._names = set(self._file.keys())
        except (SafetensorError, OSError, ValueError) as error:
            raise BundleError(f"{path.name} is damaged: {error}") from None

    def below(self, prefix: str, shape_of: Callable[[str], Shape | None] | None = None) -> Tensors:
        """The tensors of a longer prefix, from the same open file."""
        tensors = object.__new__(Tensors)
        tensors.path, tensors.prefix, tensors.shape_of = self.path, self.prefix + prefix, shape_of
        tensors._file, tensors._names = self._file, self._names
        return tensors

    def __iter__(self) -> Iterator[str]:
        names = sorted(n.removeprefix(self.prefix) for n in self._names if self._is_below(n))
        return iter(names)

    def __len__(self) -> int:
        return sum(map(self._is_below, self._names))

    def __contains__(self, name: object) -> bool:
        return (
            isinstance(name, str) and self.prefix + name in self._names and self._is_expected(name)
        )

    def get(self, name: str, default: Any = None) -> Any:
        """The tensor, or ``default`` where the file has none of this name."""
        return self[name] if name in self else default  # noqa: SIM401

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self:
            raise BundleError(f"{self.path.name}: {self.prefix}{name} is missing")
        return self._read(name, None if self.shape_of is None else self.shape_of(name))

    def _is_below(self, name: str) -> bool:
        return name.startswith(self.prefix) and self._is_expected(name.removeprefix(self.prefix))

    def _is_expected(self, name: str) -> bool:
        return self.shape_of is None or self.shape_of(name) is not None

    def _read(self, name: str, shape: Shape | None) -> np.ndarray:
        from safetensors import SafetensorError

        where = f"{self.path.name}: {self.prefix}{name}"
        try:
            header = self._file.get_slice(self.prefix + name)
            dtype, actual = _DTYPES.get(header.get_dtype()), tuple(header.get_shape())
            if dtype is None:
                raise BundleError(f"{where} is not finite float32 or int32")
            if shape is not None and actual != shape:
                raise BundleError(f"{where} must be {list(shape)}, it is {list(actual)}")
            value = self._file.get_tensor(self.prefix + name)
        except (SafetensorError, OSError, ValueError) as error:
            raise BundleError(f"{self.path.name} is damaged: {error}") from None
        if not np.isfinite(value).all():
            raise BundleError(f"{where} is not finite float32 or int32")
        return value


class Goldens:
    """The goldens of a bundle, in the shapes that its manifest says."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.tensors = Tensors(_listed(bundle, GOLDENS))

    def cases(self, name: str, task: str) -> list[tuple[Arrays, Arrays]]:
        """Inputs and outputs of each case of a part's entry; empty where there is none."""
        part = self.bundle.part(name)
        specs = (*(inputs := part.inputs_of(task)), *part.outputs)
        shapes = {spec.name: spec.shape for spec in specs}
        cases = []
        for number in range(CASES):
            tensors = self.tensors.below(f"{name}/{task}/{number}/", shapes.get)
            if not len(tensors):
                break
            cases.append((_named(tensors, inputs), _named(tensors, part.outputs)))
        return cases

    def loop(self, task: str) -> Tensors:
        """PyTorch's results for one request, by name; empty where there is no such golden.

        ``noise`` has any number of rows; those of the request are below ``request/``.
        """
        shapes = self._loop_shapes(task)

        def shape_of(name: str) -> Shape | None:
            return shapes.get(name) or shapes.get(name.split("/")[0])

        return self.tensors.below(f"{_LOOP}/{task}/", shape_of)

    def _loop_shapes(self, name: str) -> dict[str, Shape]:
        image, latent = self.bundle.manifest.image, self.bundle.manifest.latent
        size, inputs = (image.height, image.width), self.bundle.task(name).inputs
        shapes: dict[str, Shape] = {"picture": (1, 3, *size)}
        for key, picture in inputs.pictures.items():
            shapes[f"request/{key}"] = (1, 3 if picture.kind == "picture" else 1, *size)
        shapes |= {f"request/{key}": tensor.shape for key, tensor in inputs.tensors.items()}
        if latent is not None:
            cells = (latent.channels, *(side // latent.factor for side in size))
            shapes |= dict.fromkeys(("latents", "outputs"), (1, *cells))
            shapes["noise"] = (self._draws(name), *cells)
        return shapes

    def _draws(self, task: str) -> int:
        """Rows of a task's noise: one, or one more for each pass where passes draw."""
        golden, flow = self.bundle.manifest.golden, self.bundle.task(task).flow
        if golden is None or golden.steps is None:
            return 1
        strength = None if flow.start is None else golden.strength
        schedule = self.bundle.schedules.get((golden.steps, strength))
        return 1 + (0 if schedule is None else schedule.draws)


def read_constants(bundle: Bundle) -> Mapping[str, np.ndarray]:
    """The constants by name."""
    if CONSTANTS not in [record.path for record in bundle.manifest.files]:
        return {}
    path = inside(bundle.folder, CONSTANTS)
    if path.stat().st_size > LARGEST_CONSTANTS:
        raise BundleError(f"{CONSTANTS} has more than {LARGEST_CONSTANTS:,} bytes")
    return dict(Tensors(path))


def _listed(bundle: Bundle, name: str) -> Path:
    """The path of a file that must have a hash."""
    if name not in [record.path for record in bundle.manifest.files]:
        raise BundleError(f"{name} is not among the files of the manifest")
    return inside(bundle.folder, name)


def _named(tensors: Tensors, specs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    return {spec.name: tensors[spec.name] for spec in specs}
