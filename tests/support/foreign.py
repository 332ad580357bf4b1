"""Two foreign training codes: their modules, their forward, the files that they would save.

They are those of the worked examples in docs/adopt.md, and share no code with the live model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import FeedForward
from safetensors.torch import save_file
from torch import Tensor, nn

from mtu_export.models.mtu.experts import transformer_blocks
from mtu_export.testing import architectures

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
FF = f"unet.{BLOCK}.ff"
ZERO = torch.zeros(1)
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
CHANNELS = {"t2i": 4, "edit": 8, "fill": 9}
SIZES = {"embedding": 24, "hidden": 20}

# ------------------------------------------------------------------- two foreign trainers' modules


class Now:
    """The task that runs and its embedding, shared by the modules of one foreign model."""

    index: int = 0
    embedding: Tensor


class StackedFeedForward(nn.Module):
    """All experts in one tensor, x @ w, gate half first; its norms inside, by task number."""

    def __init__(self, now: Now, dim: int, width: int, experts: int, tasks: int) -> None:
        super().__init__()
        self.now = now
        self.w1 = nn.Parameter(torch.randn(experts, dim, 2 * width) / dim**0.5)
        self.b1 = nn.Parameter(torch.randn(experts, 2 * width) / 4)
        self.w2 = nn.Parameter(torch.randn(experts, width, dim) / width**0.5)
        self.b2 = nn.Parameter(torch.randn(experts, dim) / 4)
        self.gate = nn.Sequential(
            nn.Linear(SIZES["embedding"], SIZES["hidden"]),
            nn.ReLU(),
            nn.Linear(SIZES["hidden"], experts),
        )
        self.norm = nn.ModuleList(nn.LayerNorm(dim) for _ in range(tasks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm[self.now.index](x)
        mixture = torch.softmax(self.gate(self.now.embedding), 0)
        inner = torch.einsum("btd,ndh->nbth", x, self.w1) + self.b1[:, None, None]
        half = inner.shape[-1] // 2
        hidden = nn.functional.gelu(inner[..., :half]) * inner[..., half:]
        out = torch.einsum("nbth,nhd->nbtd", hidden, self.w2) + self.b2[:, None, None]
        return torch.einsum("n,nbtd->btd", mixture, out)


class ListFeedForward(nn.Module):
    """Experts as diffusers FeedForwards of unequal widths; a task norm after the shared norm3."""

    def __init__(self, now: Now, dim: int, widths: tuple[int, ...], tasks: list[str]) -> None:
        super().__init__()
        self.now, self.names = now, tasks
        self.experts = nn.ModuleList(
            FeedForward(dim, inner_dim=width, activation_fn="geglu") for width in widths
        )
        self.router = nn.Sequential(
            nn.Linear(SIZES["embedding"], SIZES["hidden"]),
            nn.ReLU(),
            nn.Linear(SIZES["hidden"], len(widths)),
        )
        self.norms = nn.ModuleDict({name: nn.LayerNorm(dim) for name in tasks})

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[self.names[self.now.index]](x)
        mixture = self.router(self.now.embedding).softmax(dim=-1)
        return torch.stack([w * e(x) for w, e in zip(mixture, self.experts, strict=True)]).sum(0)


def randomise(model: nn.Module) -> None:
    """Move norms and biases off their initial ones and zeros."""
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 1:
                value.add_(torch.randn_like(value) / 5)


class Foreign(nn.Module):
    """A stock UNet whose feed-forwards, input convolutions and embeddings are of another kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(len(kind))
        unet = UNet2DConditionModel.from_config(dict(architectures.ARCHITECTURES["tiny"]))
        assert isinstance(unet, UNet2DConditionModel)
        self.kind, self.now, self.unet = kind, Now(), unet.eval()
        self.tasks = ["t2i", "edit", "fill"] if kind == "stacked" else ["t2i", "edit"]
        for _, block in list(transformer_blocks(unet)):
            dim = block.ff.net[2].out_features  # type: ignore[union-attr]
            if kind == "stacked":
                block.norm3 = nn.Identity()  # type: ignore[assignment]
                block.ff = StackedFeedForward(self.now, dim, dim, 4, len(self.tasks))  # type: ignore[assignment]
            else:
                block.ff = ListFeedForward(self.now, dim, (dim, 2 * dim, 24), self.tasks)  # type: ignore[assignment]
        self.convs = nn.ModuleList(nn.Conv2d(CHANNELS[t], 32, 3, padding=1) for t in self.tasks)
        self.embeddings = nn.Parameter(2 * torch.randn(len(self.tasks), SIZES["embedding"]))
        randomise(self)

    @torch.no_grad()
    def forward(self, task: str, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        self.now.index = self.tasks.index(task)
        self.now.embedding = self.embeddings[self.now.index]
        self.unet.conv_in = self.convs[self.now.index]  # type: ignore[assignment]
        return self.unet(x, t, text).sample

    def state(self) -> dict[str, Tensor]:
        """Its tensors under the names that its trainer gives them."""
        prefix = "unet." if self.kind == "stacked" else ""
        tensors = {
            prefix + name: value
            for name, value in self.unet.state_dict().items()
            if not name.startswith("conv_in.")
        }
        for i, task in enumerate(self.tasks):
            place = str(i) if self.kind == "stacked" else task
            for leaf, value in self.convs[i].state_dict().items():
                tensors[f"{prefix}conv_in.{place}.{leaf}"] = value
            if self.kind == "stacked":
                tensors[f"task_embed.{task}"] = self.embeddings[i].detach()
        if self.kind == "stacked":
            tensors["ema_steps"] = torch.tensor(7)
        else:
            tensors["tasks.weight"] = self.embeddings.detach()
        return {name: value.contiguous().clone() for name, value in tensors.items()}


def save(kind: str, folder: Path) -> tuple[Foreign, Path]:
    """Save a foreign model as its example of docs/adopt.md does; gives model and weights."""
    model = Foreign(kind)
    state = model.state()
    folder.mkdir()
    if kind == "stacked":
        save_file(state, folder / "step-9000.safetensors")
        return model, folder / "step-9000.safetensors"
    (folder / "config.json").write_text(
        json.dumps({"_class_name": "UNet2DConditionModel", **architectures.ARCHITECTURES["tiny"]})
    )
    names = sorted(state)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, tensors in shards.items():
        save_file({name: state[name] for name in tensors}, folder / file)
    index = {"weight_map": {name: file for file, tensors in shards.items() for name in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return model, folder


def inputs(task: str) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    x = torch.randn(1, CHANNELS[task], 16, 16, generator=random)
    return x, torch.tensor([300.0]), torch.randn(1, 77, 32, generator=random)


@cache
def stacked_state() -> Mapping[str, Tensor]:
    """The tensors of the stacked example; copy before a change."""
    return Foreign("stacked").state()


def example(**changes: Any) -> dict[str, Any]:
    """The stacked example; ``rules`` go before its own, other keys replace or extend."""
    document = json.loads((EXAMPLES / "stacked.json").read_text())
    document["rules"] = [*changes.pop("rules", []), *document["rules"]]
    document["config"].update(changes.pop("config", {}))
    return {**document, **changes}


def put(folder: Path, state: Mapping[str, Tensor], document: object) -> tuple[Path, Path]:
    save_file(dict(state), folder / "w.safetensors")
    (folder / "map.json").write_text(json.dumps(document))
    return folder / "w.safetensors", folder / "map.json"
