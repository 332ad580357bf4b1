"""Models in one file, in LDM's names, made backwards of a pipeline's folder, tensor by tensor.

The way back is written apart from the maps by which such files are read, so that a test compares
two. Architectures are as small as the published defaults allow: 8 heads or heads of 64 channels,
groups of 32.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mtu_export import checkpoint
from mtu_export.models.pipeline.layout import UNET

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_HEADS = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
_HEADS |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
_HEADS |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v"}
_VAE_ATTENTION |= {"to_out.0": "proj_out"}


def write(
    folder: Path, out: Path, *, metadata: Mapping[str, str] | None = None, ema: bool = False
) -> dict[str, Tensor]:
    """Write the pipeline in ``folder`` as the one file ``out``; returns its tensors.

    ``ema`` adds the moving averages that training leaves beside the weights, and its schedule.
    """
    tensors = dict(_all(folder))
    if ema:
        unet = {n: t for n, t in tensors.items() if n.startswith("model.")}
        flat = {n.removeprefix("model.").replace(".", ""): t for n, t in unet.items()}
        tensors |= {f"model_ema.{n}": t + 1 for n, t in flat.items()}
        tensors |= {"model_ema.decay": torch.tensor(0.5), "betas": torch.zeros(4)}
        tensors["model_ema.num_updates"] = torch.tensor(3)
    kept = {name: value.clone().contiguous() for name, value in tensors.items()}
    save_file(kept, out, metadata=dict(metadata or {"format": "pt"}))
    return kept


def _all(folder: Path) -> Iterator[tuple[str, Tensor]]:
    unet = dict(_tensors(folder / UNET, checkpoint.WEIGHTS))
    for name, value in unet.items():
        block = name.partition(".upsamplers.")[0]
        attends = any(other.startswith(f"{block}.attentions.") for other in unet)
        yield f"model.diffusion_model.{unet_name(name, attends=attends)}", value
    if (folder / "vae").is_dir():
        levels = _levels(folder / "vae")
        for name, value in _tensors(folder / "vae", checkpoint.WEIGHTS):
            old = vae_name(name, levels)
            square = ".attn_1." in old and old.endswith(".weight") and ".norm." not in old
            yield f"first_stage_model.{old}", value[:, :, None, None] if square else value
    second = (folder / "text_encoder_2").is_dir()
    if (folder / "text_encoder").is_dir():
        config = checkpoint.read_json(folder / "text_encoder" / "config.json")
        open_clip = config["hidden_act"] == "gelu"
        first = "conditioner.embedders.0" if second else "cond_stage_model"
        tensors = dict(_tensors(folder / "text_encoder", checkpoint.TEXT_WEIGHTS))
        if open_clip:
            yield from _open_clip(tensors, f"{first}.model.")
        else:
            yield from ((f"{first}.transformer.{name}", value) for name, value in tensors.items())
            yield f"{first}.transformer.text_model.embeddings.position_ids", torch.arange(77)[None]
    if second:
        tensors = dict(_tensors(folder / "text_encoder_2", checkpoint.TEXT_WEIGHTS))
        yield from _open_clip(tensors, "conditioner.embedders.1.model.")


def _tensors(folder: Path, stem: str) -> Iterator[tuple[str, Tensor]]:
    headers = checkpoint.headers(folder, stem)
    yield from ((name, checkpoint.tensor(headers, name)) for name in headers)


def _levels(folder: Path) -> int:
    return len(checkpoint.read_json(folder / "config.json")["block_out_channels"])


def unet_name(name: str, *, attends: bool) -> str:
    """The LDM name of a tensor of diffusers' UNet with two layers a block.

    An upsampler comes after the attention of its block, where that ``attends``.
    """
    module, _, leaf = name.rpartition(".")
    if module in _HEADS:
        return f"{_HEADS[module]}.{leaf}"
    path, _, rest = name.partition(".")
    if path == "mid_block":
        kind, number, inner = rest.split(".", 2)
        if kind == "attentions":
            return f"middle_block.1.{inner}"
        return f"middle_block.{2 * int(number)}.{_resnet(inner)}"
    block, kind, number, inner = rest.split(".", 3)
    down = path == "down_blocks"
    at = 3 * int(block) + int(number) + down
    if kind == "downsamplers":
        return f"input_blocks.{3 * int(block) + 3}.0.op.{inner.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * int(block) + 2}.{1 + attends}.{inner}"
    where = f"{'input' if down else 'output'}_blocks.{at}"
    return f"{where}.1.{inner}" if kind == "attentions" else f"{where}.0.{_resnet(inner)}"


def _resnet(inner: str) -> str:
    module, _, leaf = inner.rpartition(".")
    return f"{_RESNET[module]}.{leaf}"


def vae_name(name: str, levels: int) -> str:
    """The LDM name of a tensor of diffusers' ``AutoencoderKL``."""
    half, _, rest = name.partition(".")
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    match = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", rest)
    if match and match[1] == "attentions":
        module, _, leaf = match[3].rpartition(".")
        return f"{half}.mid.attn_1.{_VAE_ATTENTION[module]}.{leaf}"
    if match:
        inner = match[3].replace("conv_shortcut", "nin_shortcut")
        return f"{half}.mid.block_{int(match[2]) + 1}.{inner}"
    match = re.fullmatch(r"(\w+)\.(down|up)_blocks\.(\d)\.(resnets|\w+samplers)\.(\d)\.(.+)", name)
    if match is None:
        return name
    number = int(match[3]) if match[2] == "down" else levels - 1 - int(match[3])
    kind = f"block.{match[5]}" if match[4] == "resnets" else match[4].removesuffix("rs")
    return f"{half}.{match[2]}.{number}.{kind}.{match[6]}"


def _open_clip(tensors: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    """OpenCLIP's names: q, k and v in one matrix, the projection as x @ W."""
    for name, value in tensors.items():
        name = name.removeprefix("text_model.")
        if name == "embeddings.position_embedding.weight":
            yield f"{prefix}positional_embedding", value
        elif name == "embeddings.token_embedding.weight":
            yield f"{prefix}token_embedding.weight", value
        elif name.startswith("final_layer_norm."):
            yield f"{prefix}ln_final.{name.rpartition('.')[2]}", value
        elif name == "text_projection.weight":
            yield f"{prefix}text_projection", value.T
        elif ".q_proj." in name:
            whole = torch.cat(
                [tensors[f"text_model.{name.replace('.q_proj.', f'.{n}_proj.')}"] for n in "qkv"]
            )
            path, leaf = _layer(name).split(".self_attn.q_proj.")
            yield f"{prefix}transformer.{path}.attn.in_proj_{leaf}", whole
        elif ".k_proj." not in name and ".v_proj." not in name:
            old = _layer(name).replace("self_attn.", "attn.").replace("layer_norm", "ln_")
            old = old.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")
            yield f"{prefix}transformer.{old}", value
    yield f"{prefix}logit_scale", torch.tensor(4.6)


def _layer(name: str) -> str:
    return name.replace("encoder.layers.", "resblocks.")
