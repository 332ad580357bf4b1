"""The text encoder of the world: CLIP's format and its loss, on captions and on instructions.

A caption belongs to its picture, an instruction to the pictures before and after. The picture side
is thrown away. The gate is a linear probe of the state at the end token: 99 % of verbs, shapes,
colours and places.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from benchmarks.shapes.cases import Case, case, inputs
from benchmarks.shapes.fitting import DEVICE, fit
from benchmarks.shapes.world import World, draw
from mtu_export.bundle import source_tokenizer
from mtu_export.bundle.tokenizer import Tokenizer
from mtu_export.testing import vocabulary

_SPOKEN = ("t2i", "edit", "inpaint")
_MIX = (*["t2i"] * 5, "edit", "edit", "inpaint")
"""Tasks of a batch of prompts: captions say most."""
_MERGES = 400


def write_tokenizer(world: World, folder: Path, length: int) -> int:
    """A ``tokenizer/`` folder learnt from the world's prompts; the number of its tokens."""
    lines = [case(world, task, "train", i).prompt for task in _SPOKEN for i in range(4000)]
    merges = vocabulary.learn(lines, _MERGES)
    size = 2 * 256 + len(merges) + 2
    vocabulary.write(folder, merges, start=size - 2, end=size - 1, length=length)
    return size


def config(size: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A stock config of CLIP's text model."""
    return {
        "vocab_size": size,
        "hidden_size": settings["width"],
        "intermediate_size": 2 * settings["width"],
        "num_hidden_layers": settings["layers"],
        "num_attention_heads": settings["heads"],
        "projection_dim": settings["width"],
        "max_position_embeddings": settings["length"],
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": size - 2,
        "eos_token_id": size - 1,
        "pad_token_id": size - 1,
    }


class _Pair(nn.Module):
    """Text encoder, and a small convolutional net for the pictures before and after."""

    def __init__(self, world: World, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self.text = CLIPTextModelWithProjection(CLIPTextConfig(**fields))
        side, width, layers, channels = world.side, 32, [], 6
        while side > 4:
            layers += [nn.Conv2d(channels, width, 3, 2, 1), nn.GroupNorm(8, width), nn.SiLU()]
            side, channels, width = side // 2, width, min(2 * width, 128)
        flat = channels * side * side
        self.pictures = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(flat, fields["projection_dim"])
        )
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, ids: Tensor, pictures: Tensor) -> Tensor:
        """Scaled cosines [B, B] of texts and pictures."""
        texts = F.normalize(self.text(input_ids=ids).text_embeds, dim=-1)
        seen = F.normalize(self.pictures(pictures), dim=-1)
        return self.scale.clamp(max=4.6).exp() * texts @ seen.T


def seen(world: World, cases: Sequence[Case]) -> Tensor:
    """Pictures before and after [B, 6, side, side]; a caption has zeros before."""
    after = draw(world, [item.after for item in cases])
    before = torch.zeros_like(after)
    for task in _SPOKEN[1:]:
        places = [i for i, item in enumerate(cases) if item.task == task]
        if places:
            conditions = inputs(world, [cases[i] for i in places])
            assert conditions is not None
            before[places] = conditions
    return torch.cat([before, after], 1)


def ids(tokenizer: Tokenizer, prompts: Sequence[str]) -> Tensor:
    """Token ids [B, tokens], padded as the pipeline pads them."""
    encoded = [torch.from_numpy(tokenizer.encode(prompt)[0]) for prompt in prompts]
    return torch.cat(encoded).long()


def train(
    world: World, settings: Mapping[str, Any], folder: Path, root: Path
) -> tuple[CLIPTextModelWithProjection, dict[str, Any], float]:
    """The trained encoder of the tokenizer in ``folder``, its config, and seconds."""
    torch.manual_seed(settings["seed"])
    tokenizer = source_tokenizer.read(folder)
    fields = config(tokenizer.largest + 1, settings)
    model = _Pair(world, fields)
    batch = settings["batch_size"]

    def loss(step: int) -> Tensor:
        rng = random.Random(f"text/{settings['seed']}/{step}")
        chosen = [
            case(world, rng.choice(_MIX), "train", i) for i in rng.sample(range(1 << 24), batch)
        ]
        tokens = ids(tokenizer, [item.prompt for item in chosen])
        longest = int((tokens != tokenizer.eos).sum(1).max()) + 1
        cosines = model(tokens[:, :longest].to(DEVICE), seen(world, chosen).to(DEVICE))
        same = (tokens[:, None] == tokens[None]).all(2).float()
        target = (same / same.sum(1, keepdim=True)).to(DEVICE)
        return (F.cross_entropy(cosines, target) + F.cross_entropy(cosines.T, target)) / 2

    seconds = fit(
        model, loss, root / "text_encoder", steps=settings["steps"], rate=settings["rate"]
    )
    return model.text.eval().requires_grad_(False), fields, seconds


# --------------------------------------------------------------------------------------- probe


def answers(world: World, item: Case) -> dict[str, str]:
    """What a reader of the prompt knows, by question.

    Of a caption: what is at which place, as pictures have no order of things.
    """
    if item.verb is None:
        there = {thing.place: thing for thing in item.after.things}
        answers_ = {f"thing {place}": str(place in there) for place in world.places}
        for place, thing in there.items():
            answers_ |= {f"{kind} {place}": getattr(thing, kind) for kind in ("shape", "colour")}
        return answers_
    assert item.before is not None
    assert item.changed is not None
    thing = (item.after if item.verb == "add" else item.before).things[item.changed]
    answers_ = {"verb": item.verb, "shape": thing.shape}
    if item.verb == "make":
        answers_["colour"] = item.after.things[item.changed].colour
    if item.verb == "turn":
        answers_["shape after"] = item.after.things[item.changed].shape
    if item.verb == "add":
        answers_ |= {"colour": thing.colour, "place": thing.place}
    return answers_


def probe(
    world: World, model: CLIPTextModelWithProjection, tokenizer: Tokenizer, count: int = 4000
) -> dict[str, float]:
    """Share of right answers on held-out prompts, by kind of prompt and question."""
    accuracy: dict[str, float] = {}
    for kind, tasks in (("caption", ("t2i",)), ("instruction", ("edit", "inpaint"))):
        by_split = {
            split: [case(world, task, split, i) for task in tasks for i in range(count)]
            for split in ("train", "test")
        }
        states = {split: _states(model, tokenizer, some) for split, some in by_split.items()}
        told = {split: [answers(world, item) for item in some] for split, some in by_split.items()}
        for question in sorted({name for item in told["train"] for name in item}):
            x, y, names = {}, {}, sorted({r[question] for r in told["train"] if question in r})
            for split in ("train", "test"):
                asked = [i for i, item in enumerate(told[split]) if question in item]
                x[split] = states[split][asked]
                y[split] = torch.tensor([names.index(told[split][i][question]) for i in asked])
            right = _linear(x["train"], y["train"], len(names))(x["test"]).argmax(1) == y["test"]
            accuracy[f"{kind}: {question}"] = right.float().mean().item()
    return accuracy


@torch.no_grad()
def _states(
    model: CLIPTextModelWithProjection, tokenizer: Tokenizer, items: Sequence[Case]
) -> Tensor:
    """The state at the end token after the last norm [B, width], as the UNet sees it."""
    outputs = []
    for start in range(0, len(items), 256):
        tokens = ids(tokenizer, [item.prompt for item in items[start : start + 256]])
        tokens = tokens[:, : model.config.max_position_embeddings]
        states = model(input_ids=tokens).last_hidden_state
        ends = (tokens == tokenizer.eos).int().argmax(1)
        outputs.append(states[torch.arange(len(tokens)), ends])
    return torch.cat(outputs)


def _linear(x: Tensor, y: Tensor, classes: int) -> nn.Module:
    """Logistic regression on standardised states."""
    mean, spread = x.mean(0), x.std(0) + 1e-6
    layer = nn.Linear(x.shape[1], classes)
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(layer((x - mean) / spread), y)
        value = value + 1e-5 * layer.weight.square().sum()
        value.backward()
        return value

    optimiser.step(closure)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.bias.sub_(layer.weight @ (mean / spread))
        layer.weight.div_(spread)
    return layer
