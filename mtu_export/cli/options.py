"""Flags that commands share or make from a dataclass of options, and what they print."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from mtu_export.spec import OutputExists, PlanError, ResourceError
from mtu_export.spec.flags import flags_of

if TYPE_CHECKING:
    from mtu_export.bundle import Bundle

Revision = Annotated[
    str | None,
    typer.Option(
        "--revision", metavar="NAME", help="Branch, tag or commit of a source on the hub."
    ),
]
Variant = Annotated[
    str | None,
    typer.Option("--variant", metavar="NAME", help="Variant of the weights, such as fp16."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON on standard output, and nothing else.")
]
Verbose = Annotated[
    bool,
    typer.Option("-v", "--verbose", help="Show what libraries print, and tracebacks."),
]
PROOF_HEAD = ["part", "task", "stage", "PSNR", "floor", "verdict", "runner"]


def print_json(value: Any) -> None:
    """Print JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def require_writable(path: Path, force: bool) -> None:
    """Refuse, before any work, a file that exists, or a place that cannot hold one."""
    name = repr(str(path)[:200])
    try:
        if path.is_dir():
            raise PlanError(f"{name} is a folder")
        if not force and (path.exists() or path.is_symlink()):
            raise OutputExists(path)
        folder = next(parent for parent in path.absolute().parents if parent.exists())
    except OSError as error:
        raise PlanError(f"cannot write {name}: {error.strerror}") from None
    if not folder.is_dir():
        raise PlanError(f"cannot write {name}: {str(folder)[:200]!r} is not a folder")
    if not os.access(folder, os.W_OK):
        raise ResourceError(f"cannot write {name}: no permission")


def part_sizes(bundle: Bundle) -> dict[str, str]:
    """Sizes by part, and that of the whole bundle, as tables show them."""
    sizes = {part.name: part.bytes for part in bundle.parts} | {"pipeline": bundle.bytes}
    return {name: f"{size / 1e6:.2f} MB" for name, size in sizes.items()}


# ------------------------------------------------------------------------ flags of a dataclass


def parameters(options: type, names: Sequence[str] | None = None) -> list[inspect.Parameter]:
    """Parameters of a command, one for each field with a ``help`` (of ``names`` alone, if given).

    A flag that is not used leaves the field's default. ``shortcuts`` of a field become flags of
    their own (``--int8``), which :func:`values` turns back.
    """
    hints = get_type_hints(options)
    flags = []
    for option in fields(options):
        if "help" not in option.metadata or (names is not None and option.name not in names):
            continue
        kind = _kind(option, hints[option.name])
        flag = typer.Option(
            *flags_of(option), help=_help(option), metavar=option.metadata.get("metavar")
        )
        default = False if kind is bool else None
        annotation = bool if kind is bool else kind | None
        flags.append(parameter(option.name, Annotated[annotation, flag], default))
        for value in option.metadata.get("shortcuts", ()):
            flag = typer.Option(f"--{value}", help=f"Short for {flags_of(option)[-1]} {value}.")
            flags.append(parameter(value, Annotated[bool, flag], False))
    return flags


def values(options: type, arguments: dict[str, Any]) -> dict[str, Any]:
    """Take the fields of ``options`` that the user gave out of a command's ``arguments``."""
    chosen = {}
    for option in fields(options):
        value = arguments.pop(option.name, None)
        for shortcut in option.metadata.get("shortcuts", ()):
            if arguments.pop(shortcut, False):
                if value not in (None, shortcut):
                    raise PlanError(f"name one {option.name}, got {value} and {shortcut}")
                value = shortcut
        if value is not None and "separator" in option.metadata:
            value = _numbers(option, value)
        if value is not None:
            chosen[option.name] = value
    return chosen


def parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """A keyword of a command, as typer reads it from the signature."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _kind(option: Field[Any], hint: Any) -> Any:
    """The type of a flag's value: one of bool, int, float and str, or a list of str."""
    types = {getattr(kind, "__origin__", kind) for kind in (get_args(hint) or (hint,))}
    if hasattr(hint, "__origin__"):
        types = {hint.__origin__}
    for kind in (bool, int, float):
        if kind in types:
            return kind
    is_list = any(isinstance(kind, type) and issubclass(kind, Sequence) for kind in types - {str})
    return list[str] if is_list and "separator" not in option.metadata else str


def _help(option: Field[Any]) -> str:
    """The help text of a flag, with its legal values and its default."""
    text, metadata = option.metadata["help"].strip(), option.metadata
    sentences = [text[0].upper() + text[1:].removesuffix(".")]
    if "choices" in metadata:
        sentences.append(f"One of: {', '.join(map(str, metadata['choices']))}")
    is_value = isinstance(option.default, (int, float, str)) and option.default is not False
    if is_value:
        several = f", for several tasks {metadata['several']}" if "several" in metadata else ""
        sentences.append(f"Default: {option.default}{several}")
    return ". ".join(sentences) + "."


def _numbers(option: Field[Any], text: str) -> list[int] | list[float]:
    """Whole numbers where the least and the greatest are whole, fractions where they are not."""
    separator = option.metadata["separator"]
    whole = all(isinstance(bound, int) for bound in option.metadata["bounds"])
    try:
        return [(int if whole else float)(number) for number in text.split(separator)]
    except ValueError:
        examples = (8, 20) if whole else (0.4, 0.6)
        raise PlanError(
            f"{flags_of(option)[-1]} takes numbers, such as "
            f"{separator.join(map(str, examples))}; got {text!r}"
        ) from None
