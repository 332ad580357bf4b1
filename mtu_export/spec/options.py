"""What the user asks of an export, of a verification and of a run: one dataclass each.

These are the only lists of options: functions take their fields, the command line has a flag for
each. They are checked as far as that needs neither checkpoint nor bundle.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mtu_export.spec.catalog import (
    BAKED_FEW_STEPS,
    BAKED_STEPS,
    BAKED_STRENGTHS,
    SCHEDULERS,
    SCHEMES,
)
from mtu_export.spec.errors import PlanError, UnknownName
from mtu_export.spec.flags import check_bounds, option
from mtu_export.spec.patterns import compile_pattern
from mtu_export.spec.task import shown

PREDICTION_TYPES = ("epsilon", "v_prediction")
FOLD_ONLY = "diffusers"
"""The target that stops after the fold."""
_STRENGTHS = ",".join(f"{strength:g}" for strength in BAKED_STRENGTHS)
_STEPS = ",".join(map(str, BAKED_STEPS))
_FEW_STEPS = ",".join(map(str, BAKED_FEW_STEPS))
_SCHEDULERS = ", ".join(name for name in SCHEDULERS if name.islower())


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What the user asks of an export; checked as far as that needs no checkpoint.

    ``target`` is a name of ``targets``, or ``"diffusers"``, which stops after the fold; ``options``
    are the target's own. A string stands for a sequence of one. Raises ``PlanError`` and
    ``UnknownName``.
    """

    target: str
    options: Mapping[str, Any] = field(default_factory=dict)
    model: str | Path | None = option(  # noqa: RUF009
        "Checkpoint: a folder, a model in one .safetensors file, or owner/name on the Hugging Face "
        "hub. Default: the model that comes with this package.",
        "-m",
        "--model",
        metavar="FOLDER|FILE|HUB-ID",
    )
    revision: str | None = option(
        "Branch, tag or commit of a checkpoint on the hub.", metavar="NAME"
    )
    variant: str | None = option("Variant of the weights, such as fp16.", metavar="NAME")
    vae: str | Path | None = option(  # noqa: RUF009
        "VAE in place of the checkpoint's: its folder, a pipeline, or a .safetensors file.",
        metavar="FOLDER|FILE",
    )
    text_encoder: Sequence[str | Path] = option(
        "Text encoder in place of the checkpoint's: its folder, or a pipeline for all of them; "
        "SDXL's second is named second.",
        default=(),
        metavar="FOLDER",
    )
    tokenizer: Sequence[str | Path] = option(
        "Tokenizer in place of the checkpoint's: its folder, or a pipeline for all of them; "
        "SDXL's second is named second.",
        default=(),
        metavar="FOLDER",
    )
    prediction_type: str | None = option(
        "What the denoiser predicts, where the checkpoint does not say or is wrong: "
        f"{' or '.join(PREDICTION_TYPES)}.",
        metavar="NAME",
    )
    task: str | Sequence[str] | None = option(
        "Task of the checkpoint, by name; repeat for several on one set of weights. "
        "`mtu-export inspect` lists them.",
        metavar="NAME",
    )
    all_tasks: bool = option("Export every task of the checkpoint.", default=False)
    scheme: str | None = option(
        f"How weights are stored: {', '.join(SCHEMES)}. Default: the target's usual one.",
        shortcuts=("int8", "fp16"),
        metavar="NAME",
    )
    out: str | Path | None = option(  # noqa: RUF009
        "Folder to write. Default: TASK-TARGET-SCHEME.", "-o", "--output", metavar="FOLDER"
    )
    height: int | None = option("Image height. Default: the checkpoint's own.", metavar="PIXELS")
    width: int | None = option("Image width. Default: the checkpoint's own.", metavar="PIXELS")
    batch: int = option(
        "Images that the denoiser takes at a time; 2 or 3 run the guidance branches together.",
        default=1,
        metavar="N",
        bounds=(1, 64),
    )
    seed: int = option(
        "Seed of the noise and the pictures that the export is tested on.",
        default=0,
        metavar="N",
        bounds=(0, 2**32 - 1),
    )
    min_psnr: float | None = option(
        "Lowest accepted PSNR against PyTorch, in dB. Default: the scheme's floor.",
        metavar="DB",
        bounds=(0, 300),
        unit=" dB",
    )
    keep_float: Sequence[str] = option(
        "With int8: a layer of the denoiser that keeps floating point, by its path or a regular "
        "expression of it; repeat for more.",
        default=(),
        metavar="NAME",
    )
    memory: float | None = option(
        "Memory that the export may use. Default: what is free.", metavar="GB"
    )
    components: Sequence[str] = option(
        "Part to export, by name; repeat for more. Default: all that the tasks need.",
        default=(),
        metavar="NAME",
    )
    bake_strengths: Sequence[float] = option(
        "Strengths with which a task that starts from a picture can run. Default: "
        f"{_STRENGTHS} and the tasks' own.",
        default=(),
        metavar="S,S",
        bounds=(0.01, 1),
        separator=",",
    )
    scheduler: str | None = option(
        f"Scheduler in place of the checkpoint's: {_SCHEDULERS}.", metavar="NAME"
    )
    bake_steps: Sequence[int] = option(
        f"Step counts that the bundle can run. Default: {_STEPS} and the tasks' own; of a model "
        f"for few steps {_FEW_STEPS}.",
        default=(),
        metavar="N,N",
        bounds=(1, 1000),
        separator=",",
    )
    lora: Sequence[str] = option(
        "LoRA to fold into the weights, with its strength; repeat for more.",
        default=(),
        metavar="FILE[#adapter][:scale]",
    )
    embedding: Sequence[str] = option(
        "Trained token (textual inversion), a safetensors file; repeat for more. Default token: "
        "the file's own, or its name.",
        default=(),
        metavar="FILE[:token]",
    )
    clip_skip: int | None = option(
        "Layers of the text encoder to leave out, as diffusers counts: 1 is the last but one of SD "
        "1.x, which AUTOMATIC1111 calls clip skip 2 and ComfyUI -2.",
        metavar="N",
        bounds=(1, 127),
    )
    no_fold: bool = option(
        "Keep experts and router in the graph; the task's embedding is an input. A baseline, for "
        "onnx and executorch.",
        default=False,
    )
    plain: bool = option(
        "Export as the toolchain does by itself, int8 by its own quantiser. A baseline, for onnx "
        "and executorch.",
        default=False,
    )
    skip_existing: bool = option(
        "Continue an export that was stopped: finished parts are kept.", default=False
    )
    force: bool = option("Replace an existing output.", default=False)

    def __post_init__(self) -> None:
        several = ("task", "keep_float", "components", "lora", "embedding")
        for name in (*several, "text_encoder", "tokenizer"):
            value = getattr(self, name) or ()
            one = isinstance(value, (str, Path))
            object.__setattr__(self, name, (value,) if one else tuple(value))
        for field_ in fields(self):
            check_bounds(field_, getattr(self, field_.name))
        if self.scheme is not None and self.scheme not in SCHEMES:
            raise UnknownName("scheme", self.scheme, list(SCHEMES))
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise UnknownName("scheduler", self.scheduler, list(SCHEDULERS))
        if self.prediction_type not in (None, *PREDICTION_TYPES):
            raise UnknownName("prediction type", str(self.prediction_type), PREDICTION_TYPES)
        if self.all_tasks and self.task:
            raise PlanError("--all-tasks and --task are mutually exclusive")
        if self.memory is not None and not 0 < self.memory < 1e6:
            raise PlanError(f"--memory must be a number of GB above 0, got {self.memory}")
        if self.no_fold and self.plain:
            raise PlanError("--no-fold and --plain are two baselines; give one of them")
        if self.plain and self.keep_float:
            raise PlanError("--plain leaves the choice of layers to the toolchain: no --keep-float")
        if self.skip_existing and self.force:
            raise PlanError("--skip-existing keeps what --force replaces; give one of them")
        for pattern in self.keep_float:
            try:
                compile_pattern(pattern)
            except ValueError as error:
                raise PlanError(
                    f"--keep-float {shown(pattern)} is not a usable pattern: {error}"
                ) from None


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """How a bundle is verified. Raises ``PlanError``."""

    min_psnr: float | None = option(
        "Lowest accepted PSNR against PyTorch, in dB. Default: the scheme's floor.",
        metavar="DB",
        bounds=(0, 300),
        unit=" dB",
    )
    runner: str | None = option(
        "Runtime of a Core ML bundle: coreml, mil-evaluator, or both, which also compares them.",
        metavar="NAME",
    )

    def __post_init__(self) -> None:
        for field_ in fields(self):
            check_bounds(field_, getattr(self, field_.name))


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a picture is made from. Raises ``PlanError``."""

    prompt: str | None = option(
        "Text that describes the picture, or the change to it.", metavar="TEXT"
    )
    negative_prompt: str | None = option(
        "Text that the picture is led away from. Default: the empty prompt.", metavar="TEXT"
    )
    task: str | None = option("Task, where the bundle has several.", metavar="NAME")
    image: str | Path | None = option("Picture to start from.", metavar="FILE")  # noqa: RUF009
    mask: str | Path | None = option("Mask: white where to repaint.", metavar="FILE")  # noqa: RUF009
    input: Sequence[str] = option(
        "Another input of the task, by name: a picture, a .npy file or a number; repeat for more.",
        default=(),
        metavar="NAME=VALUE",
    )
    steps: int | None = option("Denoising steps. Default: the task's own.", metavar="N")
    strength: float | None = option(
        "How far to leave the input image, above 0 and up to 1, one of those that were baked. "
        "Default: the task's own.",
        metavar="SHARE",
        bounds=(0, 1),
    )
    seed: int | None = option("Seed of the noise. Default: 0.", metavar="N", bounds=(0, 2**32 - 1))
    noise: str | Path | None = option(  # noqa: RUF009
        "Noise from a .npy file, in place of a seed.", metavar="FILE"
    )
    guidance: float | None = option(
        "Strength of the prompt; 1 is without guidance. Default: the task's own.",
        metavar="SCALE",
        bounds=(-100, 100),
    )
    image_guidance: float | None = option(
        "Strength of the input image. Default: the task's own.",
        metavar="SCALE",
        bounds=(-100, 100),
    )

    def __post_init__(self) -> None:
        for field_ in fields(self):
            check_bounds(field_, getattr(self, field_.name))
        inputs = (self.input,) if isinstance(self.input, str) else tuple(self.input)
        object.__setattr__(self, "input", inputs)
        for text in inputs:
            if not all(text.partition("=")[::2]):
                raise PlanError(f"--input takes NAME=VALUE, got {shown(text)}")
        if self.seed is not None and self.noise is not None:
            raise PlanError("--noise FILE is the noise itself; give no --seed")


DEVICES = ("host", "adb", "ios", "web")
MODES = ("quick", "full")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """How bundles are measured. Raises ``PlanError``."""

    device: str = option(
        "Where bundles run: host; adb or adb:SERIAL, a phone; ios or ios:UDID, an iPhone with the "
        "bench app; web, a browser here, web:ADDRESS, "
        "one that opens this address, web:adb or web:adb:SERIAL, that of a phone.",
        default="host",
        metavar="NAME",
    )
    mode: str = option(
        "quick: 3 rounds and a few samples; full: 5 rounds and more samples.",
        default="quick",
        metavar="quick|full",
    )
    baseline: bool = option(
        "Export baselines too, and measure them in turns with the bundles: the dense single-task "
        "model, the unfolded one, the toolchain's plain export, and a bundle for each task.",
        default=False,
    )
    model: str | Path | None = option(  # noqa: RUF009
        "Checkpoint of the bundles, for --baseline. Default: the model that comes with this "
        "package.",
        "-m",
        "--model",
        metavar="FOLDER|HUB-ID",
    )
    out: str | Path | None = option(  # noqa: RUF009
        "Record to write, JSON.", "-o", "--output", metavar="FILE.json"
    )
    task: Sequence[str] = option(
        "Task to measure, by name; repeat for more. Default: all of a bundle.",
        default=(),
        metavar="NAME",
    )
    part: Sequence[str] = option(
        "Part to measure, by name, or image for the whole picture; repeat for more. Default: all.",
        default=(),
        metavar="NAME",
    )
    threads: int = option(
        "Threads of the engine; 0 is its own default.", default=0, metavar="N", bounds=(0, 256)
    )
    cpus: str = option(
        "Cores: all, big (those of the highest clock), or a hexadecimal mask.",
        default="all",
        metavar="all|big|MASK",
    )
    rounds: int | None = option("Rounds in place of the mode's.", metavar="N", bounds=(1, 100))
    samples: int | None = option(
        "Samples of a round in place of the mode's.", metavar="N", bounds=(1, 10_000)
    )
    runner: str | None = option(
        "Runner on this host: c++ or python. Default: c++ where it is built (make runner).",
        metavar="NAME",
    )
    engine_options: Sequence[str] = option(
        "Option of the engine, such as a session config entry of ONNX Runtime; repeat for more.",
        "--option",
        default=(),
        metavar="NAME=VALUE",
    )
    ort_web: str | Path | None = option(  # noqa: RUF009
        "With --device web: folder of the npm package onnxruntime-web.", metavar="FOLDER"
    )
    app: bool = option(
        "With --device adb: measure in the app runtime/android/sample, which is installed on the "
        "phone, with the libraries that apps embed.",
        default=False,
    )
    keep: bool = option("With --device adb: leave what was pushed on the phone.", default=False)
    force: bool = option("Replace an existing record.", default=False)

    def __post_init__(self) -> None:
        for name in ("task", "part", "engine_options"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        for field_ in fields(self):
            check_bounds(field_, getattr(self, field_.name))
        kind, _, rest = self.device.partition(":")
        if kind not in DEVICES or (rest and kind == "host") or self.device.endswith(":"):
            legal = ["host", "adb", "adb:SERIAL", "ios", "ios:UDID"]
            legal += ["web", "web:ADDRESS", "web:adb:SERIAL"]
            raise UnknownName("device", self.device, legal)
        if self.mode not in MODES:
            raise UnknownName("mode", self.mode, MODES)
        if self.runner is not None and self.runner not in ("c++", "python"):
            raise UnknownName("runner", self.runner, ["c++", "python"])
        if not re.fullmatch("all|big|[0-9a-f]{1,64}", self.cpus) or not self.cpus.strip("0"):
            raise PlanError(
                f"--cpus takes all, big or a hexadecimal mask of cores, got {shown(self.cpus)}"
            )
        for text in self.engine_options:
            if not all(text.partition("=")[::2]):
                raise PlanError(f"--option takes NAME=VALUE, got {shown(text)}")
        self._require_device(kind)

    def _require_device(self, kind: str) -> None:
        """Refuse an option that belongs to another device."""
        for name, devices in (
            ("ort_web", ("web",)),
            ("keep", ("adb",)),
            ("app", ("adb",)),
            ("runner", ("host",)),
        ):
            if getattr(self, name) not in (None, False) and kind not in devices:
                flag = "--" + name.replace("_", "-")
                raise PlanError(f"{flag} belongs to --device {devices[0]}, not {self.device}")
        if self.app and self.cpus != "all":
            raise PlanError("--cpus binds the runner; an app has all cores: give no --cpus")
        if self.model is not None and not self.baseline:
            raise PlanError("-m names the checkpoint of --baseline; give --baseline too")
