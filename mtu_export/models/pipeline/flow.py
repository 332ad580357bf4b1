"""The flow of a Stable Diffusion task, from its conditioning.

Names of inputs and outputs are those of the graphs in ``pipeline/unet.py`` and ``stock.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from mtu_export.models.pipeline.layout import UNET, PipelineLayout, tokenizer_folder
from mtu_export.spec import Conditioning, PlanError, Task, TextEncoding
from mtu_export.spec.flow import (
    MOST_SOURCES,
    Call,
    Column,
    Constant,
    Flow,
    Inputs,
    Latent,
    Number,
    NumberRequest,
    Output,
    OutputName,
    Picture,
    PictureRequest,
    Source,
    Tokens,
    Value,
)

ENCODER, DECODER = "vae_encoder", "vae_decoder"
MASKED = "vae_encoder_masked"
"""Id of the call that encodes the image outside the mask."""
IMAGE, MASK = "image", "mask"
"""What a user gives."""
HIDDEN, POOLED = "hidden_states", "pooled"
TEXT, TEXT_POOLED, SIZES = "encoder_hidden_states", "text_embeds", "time_ids"
GUIDANCE_SCALE = "guidance_scale"
"""Input of a distilled UNet that was trained with the guidance scale as an input."""


def text_encoding(layout: PipelineLayout, *, zero_empty: bool) -> TextEncoding:
    """The calls of the text encoders, and which outputs are joined to which input of the UNet."""
    encoders = layout.text_encoders
    calls = tuple(
        Call(
            id=name,
            part=name,
            when="once",
            inputs={"input_ids": _one(Tokens(kind="tokens", tokenizer=tokenizer_folder(name)))},
        )
        for name in encoders
    )
    hidden = tuple(Output(kind="output", call=name, name=HIDDEN) for name in encoders)
    inputs = {TEXT: _joined(hidden, axis=2)}
    if layout.is_sdxl:
        inputs[TEXT_POOLED] = _one(Output(kind="output", call=encoders[-1], name=POOLED))
    return TextEncoding(calls=calls, inputs=inputs, zero_empty=zero_empty)


def inputs(task: Task, *, guidance_scale: float | None = None) -> Inputs:
    """What a task takes: an image, a mask, and the scale of a guidance-distilled UNet."""
    pictures = {}
    if task.needs_image or task.strength is not None:
        pictures[IMAGE] = PictureRequest(kind="picture")
    if task.needs_mask:
        pictures[MASK] = PictureRequest(kind="mask")
    given: dict[str, object] = {"pictures": pictures} if pictures else {}
    if guidance_scale is not None:
        number = NumberRequest(default=guidance_scale, minimum=0.0, maximum=100.0)
        given["numbers"] = {GUIDANCE_SCALE: number}
    return Inputs(**given)  # type: ignore[arg-type]


def flow(
    task: Task, layout: PipelineLayout, text: TextEncoding, *, has_guidance_scale: bool = False
) -> Flow:
    """Encode text and image, denoise, decode; ``PlanError`` for more than a bundle holds."""
    most = MOST_SOURCES - 1  # beside the latent
    if len(task.conditioning) > most:
        raise PlanError(
            f"task {task.name!r}: at most {most} conditioning entries, got {len(task.conditioning)}"
        )
    calls = [*(text.calls if task.prompt is None else ()), *_encodings(task)]
    channels = [_channels(entry, layout) for entry in task.conditioning]
    sample = _joined((Latent(kind="latent"), *channels), axis=1)
    values = {"sample": sample, "timestep": _one(Column(kind="column", name="timestep"))}
    for name, value in text.inputs.items():
        values[name] = _text(task, name, value)
    if layout.is_sdxl:
        values[SIZES] = _one(Constant(kind="constant", name=f"sizes/{SIZES}"))
    if has_guidance_scale:
        values[GUIDANCE_SCALE] = _one(Number(kind="number", name=GUIDANCE_SCALE))
    calls.append(Call(id=UNET, part=UNET, when="pass", inputs=values))
    last = Latent(kind="latent", divide=layout.scaling_factor)
    calls.append(Call(id=DECODER, part=DECODER, when="end", inputs={"latent": _one(last)}))
    optional = {}
    if task.strength is not None:
        optional["start"] = Output(
            kind="output", call=ENCODER, name="latent", multiply=layout.scaling_factor
        )
    return Flow(
        calls=tuple(calls),
        prediction=OutputName(call=UNET, name="out_sample"),
        picture=OutputName(call=DECODER, name="sample"),
        **optional,
    )


def _one(source: Source) -> Value:
    return Value(sources=(source,))


def _joined(sources: Sequence[Source], axis: int) -> Value:
    if len(sources) == 1:
        return _one(sources[0])
    return Value(sources=tuple(sources), axis=axis)


def _text(task: Task, name: str, value: Value) -> Value:
    """A text input: the prompt's, and without it the empty prompt's constant."""
    if task.prompt is not None:
        value = _one(Constant(kind="constant", name=f"prompt/{task.name}/{name}"))
    if task.guidance.kind == "none":
        return value
    return value.model_copy(update={"empty": f"empty/{name}"})


def _encodings(task: Task) -> list[Call]:
    """The calls of the VAE encoder: of the image, and of the image outside the mask."""
    kinds = {entry.kind for entry in task.conditioning}
    calls = []
    if "image_latent" in kinds or task.strength is not None:
        calls.append((ENCODER, Picture(kind="picture", name=IMAGE)))
    if "masked_image_latent" in kinds:
        calls.append((MASKED, Picture(kind="picture", name=IMAGE, outside=MASK)))
    return [
        Call(id=name, part=ENCODER, when="once", inputs={"sample": _one(source)})
        for name, source in calls
    ]


def _channels(entry: Conditioning, layout: PipelineLayout) -> Source:
    """Conditioning as a source of the UNet's sample; zeros in the branch without an image."""
    factor = layout.vae_scale_factor
    if entry.kind == "mask":
        return Picture(kind="picture", name=MASK, every=factor)
    if entry.kind == "image":
        return Picture(kind="picture", name=IMAGE, mean=factor, only="image")
    call = MASKED if entry.kind == "masked_image_latent" else ENCODER
    scaled = {"multiply": layout.scaling_factor} if entry.scaled else {}
    return Output(kind="output", call=call, name="latent", only="image", **scaled)
