"""LoRAs folded against diffusers, PEFT and LyCORIS, which run them beside the weights."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from mtu_export.bundle.metrics import psnr
from mtu_export.models import lora
from mtu_export.models.pipeline.layout import UNET
from mtu_export.testing import architectures, loras

SCALE = 0.7
RANK = 4
Parts = dict[str, Any]
LAYERS = {
    "linear": "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "geglu": "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "1x1": "mid_block.attentions.0.proj_in",
    "3x3": "mid_block.resnets.0.conv1",
    "strided": "down_blocks.0.downsamplers.0.conv",
}
NORMS = ("mid_block.resnets.0.norm1", "mid_block.attentions.0.transformer_blocks.0.norm3")


# ---------------------------------------------------------------------------------------- models


def make_unet(architecture: str = "tiny") -> UNet2DConditionModel:
    """A random UNet, always the same."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(dict(architectures.ARCHITECTURES[architecture]))
    assert isinstance(unet, UNet2DConditionModel)
    return unet.eval()


def make_text(kind: type[Any]) -> Any:
    """A random text encoder of two layers, always the same."""
    torch.manual_seed(1)
    config = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=64,
        projection_dim=24,
        bos_token_id=62,
        eos_token_id=63,
        pad_token_id=0,
    )
    return kind(config).eval()


def make_parts(architecture: str) -> Parts:
    """UNet and text encoders of a pipeline."""
    parts: Parts = {UNET: make_unet(architecture), "text_encoder": make_text(CLIPTextModel)}
    if "xl" in architecture:
        parts["text_encoder_2"] = make_text(CLIPTextModelWithProjection)
    return parts


def predict(unet: Any) -> Tensor:
    """The UNet's output for one noise and text, in its dtype."""
    random, dtype = torch.Generator().manual_seed(2), unet.dtype
    config = unet.config
    arguments = {}
    if config.addition_embed_type == "text_time":
        arguments["added_cond_kwargs"] = {
            "text_embeds": torch.randn(1, 32, generator=random).to(dtype),
            "time_ids": torch.full((1, 6), 16.0, dtype=dtype),
        }
    x = torch.randn(1, config.in_channels, 16, 16, generator=random).to(dtype)
    text = torch.randn(1, 77, config.cross_attention_dim, generator=random).to(dtype)
    with torch.no_grad():
        return unet(x, torch.tensor([300.0], dtype=dtype), text, **arguments).sample


def encode(text: Any) -> Tensor:
    """The text encoder's output for two prompts."""
    ids = torch.randint(1, 60, (2, 77), generator=torch.Generator().manual_seed(3))
    ids[:, -1] = 63
    with torch.no_grad():
        outputs = text(ids)
    pooled = getattr(outputs, "text_embeds", None)
    return outputs.last_hidden_state if pooled is None else pooled


def pipeline(unet: Any, text: Any, text_2: Any = None) -> Any:
    """A pipeline of diffusers with nothing but what a LoRA touches."""
    common = {"vae": None, "tokenizer": None, "scheduler": None, UNET: unet, "text_encoder": text}
    if text_2 is not None:
        return StableDiffusionXLPipeline(**common, text_encoder_2=text_2, tokenizer_2=None)  # type: ignore[arg-type]
    extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**common, **extra)  # type: ignore[arg-type]


def fold(parts: Mapping[str, nn.Module], *words: str) -> lora.Report:
    """Fold LoRAs as they are named on the command line."""
    return lora.apply(parts, [lora.load(lora.parse(word)) for word in words])


def likeness(theirs: Parts, ours: Parts, plain: Parts) -> float:
    """The lowest PSNR of any part's output in float64; every part must feel the LoRA."""
    worst = float("inf")
    for name, part in theirs.items():
        run = predict if name == UNET else encode
        want = run(part.double()).numpy()
        without = psnr(want, run(copy.deepcopy(plain[name]).double()).numpy())
        if without > 200:  # the LoRA has no layers for it
            continue
        assert without < 60, f"{name} hardly changed: {without:.0f} dB"
        worst = min(worst, psnr(want, run(ours[name].double()).numpy()))
    return worst


# ------------------------------------------------------------------------------------- diffusers

Write = Callable[[Parts], Mapping[str, Tensor]]
"""Tensors of a file, from the parts that it is for."""


def by_diffusers(
    writes: tuple[Write, ...],
    folder: Path,
    *,
    architecture: str = "tiny",
    words: tuple[str, ...] = (f":{SCALE}",),
    weights: tuple[Any, ...] = (SCALE,),
    theirs: tuple[Write, ...] = (),
    fuse: bool = False,
) -> float:
    """Files that diffusers loads beside the weights, or fuses, with ``weights``; we fold with
    ``words``. ``theirs`` are the files that diffusers reads, where it does not read ours.
    """
    plain = make_parts(architecture)
    loaded, ours = copy.deepcopy(plain), copy.deepcopy(plain)
    pipe = pipeline(*loaded.values())
    for n, write in enumerate(theirs or writes):
        loras.write(folder / f"their-{n}.safetensors", write(plain))
        name = f"their-{n}.safetensors"
        pipe.load_lora_weights(str(folder), weight_name=name, adapter_name=f"a{n}")
    names = [f"a{n}" for n in range(len(writes))]
    pipe.set_adapters(names, list(weights))
    if fuse:
        pipe.fuse_lora(adapter_names=names)
        pipe.unload_lora_weights()
    files = [
        loras.write(folder / f"{n}.safetensors", write(plain)) for n, write in enumerate(writes)
    ]
    fold(ours, *(f"{file}{word}" for file, word in zip(files, words, strict=True)))
    return likeness(loaded, ours, plain)


def of_unet(parts: Parts, build: Callable[..., Any], kinds: Any = (nn.Linear, nn.Conv2d)) -> Any:
    """``build`` of every layer of the UNet of these kinds, by path."""
    unet = parts[UNET]
    paths = [p for p in loras.layers(unet) if isinstance(unet.get_submodule(p), kinds)]
    return build(
        {path: loras.pair(unet.get_submodule(path), RANK, n) for n, path in enumerate(paths)}
    )


def kohya_unet(parts: Parts) -> dict[str, Tensor]:
    """As kohya trains SD: all but the first and last convolutions, with alphas."""
    unet = parts[UNET]
    paths = [p for p in loras.layers(unet) if p not in ("conv_in", "conv_out")]
    return loras.kohya(loras.pairs(unet, paths), alpha=2.0)


def original(parts: Parts) -> dict[str, Tensor]:
    """As kohya trains SDXL: blocks as in Stability's code, and both text encoders."""
    from mtu_export.models.lora.model import Names

    unet = parts[UNET]
    first = ("input_blocks", "middle_block", "output_blocks")
    own = set(loras.layers(unet))
    paths = {}
    for flat, layer in Names(UNET, unet).flat.items():
        path = next(iter(layer.values())).path
        if flat.startswith(first) and path in own and path not in ("conv_in", "conv_out"):
            paths[flat] = path
    pairs = {
        flat: loras.pair(unet.get_submodule(p), RANK, n)
        for n, (flat, p) in enumerate(paths.items())
    }
    tensors = loras.kohya(pairs, alpha=2.0)
    tensors |= loras.kohya(text_pairs(parts["text_encoder"]), "lora_te1_", alpha=2.0)
    return tensors | loras.kohya(text_pairs(parts["text_encoder_2"]), "lora_te2_", alpha=1.0)


def text_pairs(text: Any) -> dict[str, loras.Pair]:
    """Matrices for attention and MLP of a text encoder, by the paths that files have."""
    paths = [p for p in loras.layers(text) if "encoder.layers." in p]
    pairs = loras.pairs(text, paths, RANK)
    return {f"text_model.{path.removeprefix('text_model.')}": pair for path, pair in pairs.items()}


def text_encoder(parts: Parts) -> dict[str, Tensor]:
    """kohya's names of SD's text encoder."""
    return loras.kohya(text_pairs(parts["text_encoder"]), "lora_te_", alpha=2.0)


def named(write: Write, *names: str) -> Write:
    """The same matrices under adapters' names, each adapter's twice the one before it."""

    def build(parts: Parts) -> dict[str, Tensor]:
        tensors = {}
        for power, name in enumerate(names):
            for key, tensor in write(parts).items():
                stem, _, end = key.rpartition(".")
                tensors[f"{stem}.{name}.{end}"] = tensor * 2**power
        return tensors

    return build


def dora(parts: Parts) -> dict[str, Tensor]:
    """PEFT's names, a magnitude for each row of every layer."""
    unet = parts[UNET]
    tensors = of_unet(parts, loras.peft)
    for n, path in enumerate(loras.layers(unet)):
        values = loras.magnitude(unet.get_submodule(path), n)
        shape = (1, -1, 1, 1) if values.ndim == 4 else (-1,)
        tensors[f"unet.{path}.lora_magnitude_vector"] = values.reshape(shape)
    return tensors


def attention(parts: Parts) -> dict[str, Tensor]:
    """Attention layers alone, for which diffusers' scales of blocks are defined."""
    paths = [p for p in loras.layers(parts[UNET]) if ".attn" in p]
    return loras.peft(loras.pairs(parts[UNET], paths, RANK, seed=3))


def biased(parts: Parts) -> dict[str, Tensor]:
    """Matrices with a bias of ``lora_B`` (PEFT's ``lora_bias``), in layers that have one."""
    unet = parts[UNET]
    paths = [p for p in loras.layers(unet) if unet.get_submodule(p).bias is not None]
    tensors = loras.peft(loras.pairs(unet, paths, RANK))
    for n, path in enumerate(paths):
        bias: Any = unet.get_submodule(path).bias
        random = torch.Generator().manual_seed(n)
        tensors[f"unet.{path}.lora_B.bias"] = torch.randn(bias.shape, generator=random) * 0.3
    return tensors


_BLOCKS = {UNET: {"down": 0.3, "mid": 1.5, "up": {"block_0": -0.5, "block_1": [0.2, 0.9]}}}


# ------------------------------------------------------------------------------------------ PEFT


def by_peft(folder: Path, kind: str, **options: Any) -> float:
    """A folder that PEFT saved; its own module runs it."""
    import peft

    plain = {UNET: make_unet()}
    ours = copy.deepcopy(plain)
    config = getattr(peft, f"{kind}Config")(
        r=RANK,
        alpha=6,
        alpha_pattern={"to_k": 2},
        target_modules=["to_q", "to_k", "conv1", "proj_in", "ff.net.0.proj"],
        init_weights=False,
        **options,
    )
    torch.manual_seed(4)
    theirs: Any = peft.get_peft_model(copy.deepcopy(plain[UNET]), config)  # type: ignore[arg-type]
    theirs.save_pretrained(folder)
    fold(ours, str(folder / "adapter_model.safetensors"))
    return likeness({UNET: theirs.base_model.model}, ours, plain)


# --------------------------------------------------------------------------------------- LyCORIS


def by_lycoris(folder: Path, kind: str, **options: Any) -> float:
    """LyCORIS' module of each layer, its tensors random, runs beside the folded layer."""
    name, _, class_name = kind.partition(".")
    module = getattr(importlib.import_module(f"lycoris.modules.{name}"), class_name)
    unet, worst = make_unet(), float("inf")
    for n, path in enumerate(NORMS if name == "norms" else LAYERS.values()):
        layer: Any = unet.get_submodule(path)
        torch.manual_seed(n)
        theirs = module("x", copy.deepcopy(layer), **options)
        for role, parameter in theirs.named_parameters():
            if "org_" not in role:
                begin = parameter.data if role == "dora_scale" else 0.0
                parameter.data = begin + 0.3 * torch.randn_like(parameter).abs()
        stored = theirs.custom_state_dict() or theirs.state_dict()
        roles = {path: {name: tensor.detach() for name, tensor in stored.items()}}
        file = loras.write(folder / "x.safetensors", loras.by_layer(roles))
        want = theirs.eval()(_input(layer)).detach()
        fold({UNET: unet}, str(file))
        worst = min(
            worst, psnr(want.numpy(), unet.get_submodule(path)(_input(layer)).detach().numpy())
        )
    return worst


def _input(layer: Any) -> Tensor:
    random = torch.Generator().manual_seed(9)
    width = layer.weight.shape[1] if layer.weight.ndim > 1 else layer.weight.shape[0]
    conv = isinstance(layer, (nn.Conv2d, nn.GroupNorm))
    return torch.randn(2, width, *([8, 8] if conv else []), generator=random)
