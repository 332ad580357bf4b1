"""What a stopped export has finished, in files of its draft, so that the next one goes on there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import mtu_export
from mtu_export import bundle, checkpoint
from mtu_export.exporter import manifest
from mtu_export.spec import COMPONENTS, BundleError, Cost, Plan, Verdict
from mtu_export.storage import atomic_file
from mtu_export.storage.draft import SCRATCH

if TYPE_CHECKING:
    from mtu_export.exporter.component import Made

_PLAN_ONLY = ("out", "force", "memory", "resume")
"""Fields of a plan that do not change what is exported."""


def fingerprint(plan: Plan, identity: Mapping[str, str], versions: Mapping[str, str]) -> str:
    """By which two exports are known to make the same: plan, source, LoRAs, versions and code."""
    rows = {row.name: repr(getattr(plan, row.name)) for row in fields(plan)}
    kept = {name: value for name, value in rows.items() if name not in _PLAN_ONLY}
    files = {str(path): bundle.sha256(path) for word in plan.loras for path in _lora_files(word)}
    said = {**identity, "name": "", **versions}
    read = bundle.sha256_of(_read_too(plan))
    text = json.dumps([kept, said, files, read, _code()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _code() -> str:
    """Of this package: a version that is installed from a working tree does not stand still."""
    home = Path(mtu_export.__file__).parent
    return bundle.sha256_of({p.relative_to(home).as_posix(): p for p in home.rglob("*.py")})


def source_files(plan: Plan) -> list[Path]:
    """The checkpoint's folder and the LoRAs."""
    return [plan.checkpoint, *(path for word in plan.loras for path in _lora_files(word))]


def stamps(plan: Plan) -> dict[str, tuple[int, int, int]]:
    """Inode, size and time of every file that an export reads, to see that none has changed."""
    read = [*manifest.weights(plan).values(), *_read_too(plan).values(), *source_files(plan)[1:]]
    found = {str(path): path.stat() for path in read}
    return {name: (row.st_ino, row.st_size, row.st_mtime_ns) for name, row in found.items()}


def _read_too(plan: Plan) -> dict[str, Path]:
    """What an export reads of its source beside the parts that ``identity`` has a hash of.

    Index, scheduler, tokenizers, licences, configs, and the weights of text encoders that are not
    exported: the embeddings of fixed prompts come from them.
    """
    home = plan.checkpoint
    names = ("model_index.json", "scheduler/*.json", "tokenizer*/*", "*/config.json")
    files = [path for name in names for path in home.glob(name) if path.is_file()]
    for name in COMPONENTS if "unet" in plan.components else ():
        encoder = name.startswith("text_encoder") and name not in plan.components
        if encoder and (home / name).is_dir():
            files += checkpoint.weight_files(home / name, checkpoint.TEXT_WEIGHTS)
    return {str(path.relative_to(home)): path for path in (*files, *checkpoint.licences(home))}


def _lora_files(word: str) -> list[Path]:
    from mtu_export.models import lora

    path, _ = lora.parse(word)
    config = lora.config_beside(path)
    return [path] if config is None else [path, config]


class State:
    """Finished components below a draft folder; those of another export are cleared away."""

    def __init__(self, folder: Path, mark: str) -> None:
        self.folder, self.home = folder, folder / SCRATCH
        try:
            same = (self.home / "mark").read_text("utf-8") == mark
        except (OSError, ValueError):
            same = False
        if not same:
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            self.home.mkdir()
            (self.home / "mark").write_text(mark, "utf-8")

    def get(self, component: str) -> tuple[Made | None, dict[str, np.ndarray]] | None:
        """A finished component and what it gave to the loop, its files checked; else null.

        What was half written, or changed since, is as good as not finished.
        """
        from safetensors import SafetensorError

        try:
            return self._read(component)
        except (BundleError, SafetensorError, OSError, ValueError, KeyError, TypeError):
            return None

    def _read(self, component: str) -> tuple[Made | None, dict[str, np.ndarray]] | None:
        from safetensors.numpy import load_file

        from mtu_export.exporter.component import Made

        path = self.home / f"{component}.json"
        if not path.is_file():
            return None
        said = json.loads(path.read_text("utf-8"))
        arrays = load_file(self.home / f"{component}.safetensors")
        given = {n.removeprefix("given/"): v for n, v in arrays.items() if n.startswith("given/")}
        if said is None:
            return None, given
        bundle.check_part(self.folder, said["row"])
        cases: dict[str, list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]] = {}
        for task, count in said["cases"].items():
            cases[task] = []
            for number in range(count):
                pair = [
                    {n.removeprefix(s): arrays[n] for n in said["names"] if n.startswith(s)}
                    for s in (f"{task}/{number}/in/", f"{task}/{number}/out/")
                ]
                cases[task].append((pair[0], pair[1]))
        made = Made(
            component=component,
            row=said["row"],
            proof=tuple(Verdict.from_json(row) for row in said["proof"]),
            cases=cases,
            cost=Cost(**said["cost"]),
        )
        return made, given

    def put(self, component: str, made: Made | None, given: Mapping[str, np.ndarray]) -> None:
        """Keep a finished component; its JSON appears last and whole."""
        from safetensors.numpy import save_file

        arrays = {f"given/{name}": value for name, value in given.items()}
        said: dict[str, Any] | None = None
        if made is not None:
            names = []
            for task, cases in made.cases.items():
                for number, case in enumerate(cases):
                    for side, rows in zip(("in", "out"), case, strict=True):
                        found = {f"{task}/{number}/{side}/{name}": v for name, v in rows.items()}
                        names += found
                        arrays |= found
            said = {
                "row": made.row,
                "proof": [row.to_json() for row in made.proof],
                "cost": asdict(made.cost),
                "cases": {task: len(cases) for task, cases in made.cases.items()},
                "names": names,
            }
        found = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        with atomic_file(self.home / f"{component}.safetensors") as private:
            save_file(found, private)
        with atomic_file(self.home / f"{component}.json") as private:
            private.write_text(json.dumps(said), "utf-8")
