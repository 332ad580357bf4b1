"""``goldens.safetensors``: inputs and reference outputs of every part, and of the whole loop.

Names are ``<component>/<task>/<case>/<tensor>`` and ``loop/<task>/<tensor>``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mtu_export.bundle.paths import inside
from mtu_export.spec import Arrays, BundleError

if TYPE_CHECKING:
    from mtu_export.bundle import Bundle

GOLDENS = "goldens.safetensors"
CONSTANTS = "constants.safetensors"
CASES = 3
"""Golden cases of a part and task."""
_LOOP = "loop"

Cases = Sequence[tuple[Arrays, Arrays]]


def write_goldens(
    folder: Path, rows: Mapping[str, Cases], loops: Mapping[str, Arrays] | None = None
) -> None:
    """Write inputs and reference outputs.

    ``rows`` maps ``component/task`` to cases, ``loops`` a task to the tensors of its loop.
    """
    from safetensors.numpy import save_file

    found = {
        f"{key}/{number}/{name}": np.ascontiguousarray(value)
        for key, cases in rows.items()
        for number, case in enumerate(cases)
        for arrays in case
        for name, value in arrays.items()
    }
    for task, arrays in (loops or {}).items():
        found |= {f"{_LOOP}/{task}/{n}": np.ascontiguousarray(v) for n, v in arrays.items()}
    save_file(found, folder / GOLDENS)


def read_goldens(bundle: Bundle) -> dict[str, list[tuple[Arrays, Arrays]]]:
    """Goldens by ``component/task``: cases of inputs and outputs."""
    outputs = {(part.component, spec.name) for part in bundle.parts for spec in part.outputs}
    cases: dict[tuple[str, str], tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}
    for name, value in _tensors(bundle, GOLDENS):
        names = name.split("/")
        if names[0] == _LOOP:
            continue
        if len(names) != 4:
            raise BundleError(f"{GOLDENS}: unknown tensor {name!r}")
        component, task, case, tensor = names
        pair = cases.setdefault((f"{component}/{task}", case), ({}, {}))
        pair[(component, tensor) in outputs][tensor] = value
    found: dict[str, list[tuple[Arrays, Arrays]]] = {}
    for (key, _), pair in cases.items():
        found.setdefault(key, []).append(pair)
    return found


def read_loop(bundle: Bundle, task: str) -> dict[str, np.ndarray]:
    """What PyTorch made of one request, by name; empty where the bundle has no such golden."""
    prefix = f"{_LOOP}/{task}/"
    return {n.removeprefix(prefix): v for n, v in _tensors(bundle, GOLDENS) if n.startswith(prefix)}


def write_constants(folder: Path, rows: Arrays) -> None:
    """Write what does not depend on the user's prompt: embeddings of fixed prompts, sizes."""
    from safetensors.numpy import save_file

    found = {name: np.ascontiguousarray(value) for name, value in rows.items()}
    save_file(found, folder / CONSTANTS)


def read_constants(bundle: Bundle) -> dict[str, np.ndarray]:
    """The constants by name: ``empty/<input>``, ``prompt/<task>/<input>``, ``sizes/<input>``."""
    listed = [row["path"] for row in bundle.manifest.get("files", ())]
    return dict(_tensors(bundle, CONSTANTS)) if CONSTANTS in listed else {}


def _tensors(bundle: Bundle, name: str) -> list[tuple[str, np.ndarray]]:
    """All tensors of a file in the order of their names, finite float32 or int32.

    A manifest with ``files`` (schema 1.1) must have a hash of it there.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    listed = bundle.manifest.get("files")
    if listed is not None and name not in [row["path"] for row in listed]:
        raise BundleError(f"{name} is not among the files of the manifest")
    try:
        rows = load_file(inside(bundle.folder, name))
    except (SafetensorError, OSError, ValueError, AttributeError, KeyError) as error:
        raise BundleError(f"{name} is damaged: {error}") from None
    for key, value in rows.items():
        if value.dtype not in (np.float32, np.int32) or not np.isfinite(value).all():
            raise BundleError(f"{name}: tensor {key!r} is not finite float32 or int32")
    return sorted(rows.items())
