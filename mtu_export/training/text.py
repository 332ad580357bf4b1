"""Prompts as the UNet's text inputs, by the checkpoint's frozen CLIP encoders."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtu_export import checkpoint
from mtu_export.bundle import source_tokenizer, tokenizer
from mtu_export.models.pipeline import stock
from mtu_export.models.pipeline.layout import PipelineLayout, tokenizer_folder
from mtu_export.spec import CheckpointError

_KEPT_BYTES = 1_000_000_000
_GPU_BATCH = 64


class Texts:
    """``encoder_hidden_states`` (and SDXL's ``text_embeds``) of prompts.

    SDXL joins the states before the last layer of both encoders; ``text_embeds`` is the second
    one's projected end. A dropped prompt is what the exported loop has for it: zeros where the
    index says ``force_zeros_for_empty_prompt``, else the empty text. Raises ``CheckpointError``.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], device: torch.device) -> None:
        layout = PipelineLayout(config)
        self.xl = layout.is_sdxl
        self.device = device
        self.encoders: list[tuple[tokenizer.Tokenizer, Any]] = []
        for name in layout.text_encoders:
            if not (folder / name).is_dir():
                raise CheckpointError(f"{folder} has no {name}/: training needs it")
            module = stock.load_text_encoder(folder, name)
            clip_tokenizer = source_tokenizer.read(folder / tokenizer_folder(name))
            tokenizer.matches(clip_tokenizer, checkpoint.read_json(folder / name / "config.json"))
            self.encoders.append((clip_tokenizer, module.to(device)))
        index_file = folder / "model_index.json"
        index = checkpoint.read_json(index_file) if index_file.is_file() else {}
        self.zeros = self.xl and index.get("force_zeros_for_empty_prompt", True) is True
        self.kept: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self.bytes = 0
        expected, width = config["cross_attention_dim"], self._width()
        if width != expected:
            raise CheckpointError(
                f"{folder}: the text encoder gives {width} numbers a token, the UNet's "
                f"cross_attention_dim is {expected}"
            )

    def _width(self) -> int:
        return self.of([""])["encoder_hidden_states"].shape[-1]

    def of(
        self, prompts: Sequence[str], dropped: Sequence[bool] | None = None
    ) -> dict[str, Tensor]:
        """UNet inputs [n, ...] by name for n prompts, of which some are dropped."""
        is_dropped = dropped if dropped is not None else [False] * len(prompts)
        texts = ["" if gone else prompt for prompt, gone in zip(prompts, is_dropped, strict=True)]
        missing = list(dict.fromkeys(text for text in texts if text not in self.kept))
        # On a CPU one by one, so that a row never depends on what else was asked for.
        size = _GPU_BATCH if self.device.type == "cuda" else 1
        embeddings = {text: self.kept[text] for text in texts if text in self.kept}
        for begin in range(0, len(missing), size):
            chunk = missing[begin : begin + size]
            encoded = self._encode(chunk)
            for number, text in enumerate(chunk):
                embeddings[text] = {name: value[number] for name, value in encoded.items()}
                self._keep(text, embeddings[text])
        keep = torch.tensor([not (gone and self.zeros) for gone in is_dropped], device=self.device)
        inputs = {}
        for name in next(iter(embeddings.values())):
            value = torch.stack([embeddings[text][name] for text in texts])
            inputs[name] = value * keep.view(-1, *[1] * (value.ndim - 1)) if self.zeros else value
        return inputs

    def _keep(self, text: str, embedding: dict[str, Tensor]) -> None:
        self.kept[text] = embedding
        self.bytes += _bytes(embedding)
        while self.bytes > _KEPT_BYTES:
            _, old = self.kept.popitem(last=False)
            self.bytes -= _bytes(old)

    @torch.no_grad()
    def _encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        states, pooled_output = [], {}
        for clip_tokenizer, module in self.encoders:
            ids = torch.cat([torch.from_numpy(clip_tokenizer.encode(text)[0]) for text in texts])
            out = module(ids.long().to(self.device), output_hidden_states=self.xl)
            states.append(out.hidden_states[-2] if self.xl else out.last_hidden_state)
            if self.xl and module is self.encoders[-1][1]:
                pooled = out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output
                pooled_output["text_embeds"] = pooled.float()
        return {"encoder_hidden_states": torch.cat(states, -1).float(), **pooled_output}


def _bytes(embedding: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in embedding.values())
