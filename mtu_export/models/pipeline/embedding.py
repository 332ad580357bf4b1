"""Textual inversion: files of trained tokens, and their rows in a text encoder.

Forms: diffusers' (one tensor, named as the token), A1111's (``emb_params``) and SDXL's pairs
(``clip_l``, ``clip_g``), each [d] or [n, d]. As in diffusers, n vectors are the tokens T, ``T_1``,
... of which a prompt says the first.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mtu_export import checkpoint
from mtu_export.spec import CheckpointError, Embedding, PlanError, shown

if TYPE_CHECKING:
    from torch import nn

_A1111 = "emb_params"
_PAIR = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_LORA = re.compile(r"lora_|\.lora\.|\.alpha$|\.hada_|\.lokr_|\.dora_scale$")
_MOST_VECTORS = 75
"""Tokens of a prompt beside its start and end."""
_LONGEST_TOKEN = 100
_OWNERS = {
    768: "Stable Diffusion 1.x (CLIP ViT-L/14)",
    1024: "Stable Diffusion 2.x (OpenCLIP ViT-H/14)",
    1280: "SDXL's second one (OpenCLIP ViT-bigG/14)",
}
"""Width of a text encoder -> whose it is."""


def read(argument: str, widths: Mapping[str, Any]) -> Embedding:
    """Read ``FILE[:token]`` for a model whose text encoders have these ``widths`` by part.

    Without a token it is the tensor's name, or the file's stem where the form has no name. Raises
    ``PlanError`` for no such file, an odd token and another width, ``CheckpointError`` for a file
    that is no embedding.
    """
    path, token = _parse(argument)
    headers = _headers(path)
    pair = {*headers} == {*_PAIR}
    if pair != (len(widths) > 1):
        _refuse_pair(path, headers, pair=pair)
    tensors = {part: name for name, part in _PAIR.items()} if pair else {}
    tensors = tensors or dict.fromkeys(widths, next(iter(headers)))
    counts = {part: _count(path, name, headers[name]) for part, name in tensors.items()}
    if len({*counts.values()}) > 1:
        raise CheckpointError(f"{path}: clip_l and clip_g must have as many vectors, got {counts}")
    for part, name in tensors.items():
        width = headers[name].shape[-1]
        if width != widths[part]:
            whose = f"; {width} is that of {_OWNERS[width]}" if width in _OWNERS else ""
            raise PlanError(
                f"--embedding {path}: vectors of {width} numbers, {part} of this model takes "
                f"{shown(widths[part])}{whose}"
            )
        if not bool(checkpoint.tensor(headers, name).isfinite().all()):
            raise CheckpointError(f"{path}: tensor {name!r} holds NaN or Inf")
    if token is None:
        (token,) = {*headers} if len(headers) == 1 and _A1111 not in headers else {path.stem}
    _check_token(path, token)
    (count,) = {*counts.values()}
    names = (token, *(f"{token}_{number}" for number in range(1, count)))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Embedding(path=path, sha256=digest, tokens=names, tensors=tensors)


def _parse(argument: str) -> tuple[Path, str | None]:
    """File and token; a colon of the file's own name separates nothing."""
    ends = [len(argument), *(at for at, c in enumerate(argument) if c == ":")]
    for end in sorted(ends, reverse=True):
        try:
            path = Path(argument[:end]).expanduser()
            if path.is_file():
                return path, argument[end + 1 :] if end < len(argument) else None
        except (OSError, RuntimeError, ValueError):  # too long, ~nobody, a null byte
            continue
    raise PlanError(f"--embedding: no file {shown(argument)}")


def _headers(path: Path) -> dict[str, checkpoint.Header]:
    """The tensors of an embedding; refuses pickles, LoRAs and files of more tensors."""
    if path.suffix.lower() in _PICKLES:
        raise CheckpointError(
            f"{path} is a pickle: refused; where you trust it, torch.load it and save_file("
            "{'emb_params': vectors}) it with safetensors"
        )
    headers = checkpoint.file_headers(path)
    if not headers:
        raise CheckpointError(f"{path} is empty: it holds no tensor")
    if any(_LORA.search(name) for name in headers):
        raise CheckpointError(f"{path} is a LoRA, no embedding: give it with --lora")
    if len(headers) > 1 and {*headers} != {*_PAIR}:
        names = ", ".join(sorted(headers)[:3])
        raise CheckpointError(
            f"{path} is no embedding: it holds {len(headers)} tensors ({names}, ...); legal: one "
            "tensor, or clip_l and clip_g"
        )
    return headers


def _refuse_pair(path: Path, headers: Mapping[str, Any], *, pair: bool) -> NoReturn:
    if pair:
        raise PlanError(
            f"--embedding {path} is a pair for SDXL (clip_l, clip_g); this model has one text "
            "encoder"
        )
    width = next(iter(headers.values())).shape[-1:]
    whose = f", that of {_OWNERS[width[0]]}" if width and width[0] in _OWNERS else ""
    raise PlanError(
        f"--embedding {path} is for one text encoder{whose}; SDXL takes a pair, clip_l and clip_g"
    )


def _count(path: Path, name: str, header: checkpoint.Header) -> int:
    shape = header.shape
    if len(shape) not in (1, 2) or 0 in shape:
        raise CheckpointError(f"{path}: tensor {name!r} is {list(shape)}; legal: [d] or [n, d]")
    count = shape[0] if len(shape) == 2 else 1
    if count > _MOST_VECTORS:
        raise CheckpointError(
            f"{path}: tensor {name!r} has {count} vectors; a prompt holds {_MOST_VECTORS}"
        )
    return count


def _check_token(path: Path, token: str) -> None:
    if not token or not token.isprintable() or any(c.isspace() for c in token):
        raise PlanError(
            f"--embedding {path}: {shown(token)} is no token: it must be printable and hold no "
            f"space; name one: {path.name}:<name>"
        )
    if len(token) > _LONGEST_TOKEN:
        raise PlanError(
            f"--embedding {path}: a token has at most {_LONGEST_TOKEN} characters, got {len(token)}"
        )


def refuse_repeated(embeddings: Sequence[Embedding]) -> None:
    """Refuse two files with one token. Raises ``PlanError``."""
    files: dict[str, Path] = {}
    for embedding in embeddings:
        for token in embedding.tokens:
            if token in files:
                raise PlanError(
                    f"--embedding: {files[token]} and {embedding.path} have one token, "
                    f"{shown(token)}; name another: {embedding.path.name}:<name>"
                )
            files[token] = embedding.path


def embed(
    module: nn.Module, part: str, embeddings: Sequence[Embedding], ids: Mapping[str, int]
) -> None:
    """Set the rows of added tokens in a text encoder's token embedding, by their ``ids``."""
    import torch

    text: Any = getattr(module, "text_model", module)
    layer = text.embeddings.token_embedding
    old = layer.weight.data
    size = max(len(old), 1 + max(ids[token] for e in embeddings for token in e.tokens))
    rows = torch.zeros(size, old.shape[1], dtype=old.dtype)
    rows[: len(old)] = old
    for embedding in embeddings:
        headers = checkpoint.file_headers(embedding.path)
        vectors = checkpoint.tensor(headers, embedding.tensors[part]).to(old.dtype)
        for token, vector in zip(embedding.tokens, vectors.reshape(-1, old.shape[1]), strict=True):
            rows[ids[token]] = vector
    layer.weight = torch.nn.Parameter(rows, requires_grad=False)
    layer.num_embeddings = size


def notes(embeddings: Sequence[Embedding]) -> tuple[str, ...]:
    """A line for the model card; none without embeddings."""
    if not embeddings:
        return ()
    texts = [
        f"`{each.tokens[0]}` ({len(each.tokens)} vector{'s' * (len(each.tokens) > 1)}, "
        f"{each.path.name})"
        for each in embeddings
    ]
    return (f"Added tokens, to be written in the prompt: {', '.join(texts)}.",)
