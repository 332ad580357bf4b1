"""Whether each tokenizer of a checkpoint is that of its text encoder, before any work."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from mtu_export import checkpoint
from mtu_export.spec import CheckpointError, Embedding, Plan, PlanError, shown
from mtu_export.spec.flow import Tokens

if TYPE_CHECKING:
    from mtu_export.bundle.tokenizer import Tokenizer


def added(plan: Plan) -> list[str]:
    """The tokens that the plan's embeddings add to every tokenizer."""
    return [token for embedding in plan.model.embeddings for token in embedding.tokens]


def read(plan: Plan, name: str) -> Tokenizer:
    """A tokenizer of the plan's checkpoint, with the added tokens."""
    from mtu_export.bundle import source_tokenizer

    return source_tokenizer.read(checkpoint.on_disk(plan.checkpoint / name), added(plan))


def added_ids(plan: Plan, part: str) -> dict[str, int]:
    """Ids of the added tokens in the tokenizer of a text encoder; empty where there are none."""
    names = added(plan)
    if not names or plan.model.text is None:
        return {}
    sources = [s for call in plan.model.text.calls if call.part == part for s in call.sources()]
    tokenizers = {source.tokenizer for source in sources if isinstance(source, Tokens)}
    ids: dict[str, int] = {}
    for tokenizer in tokenizers:
        entries = read(plan, tokenizer).document["added_tokens"]
        ids = {entry["content"]: entry["id"] for entry in entries if entry["content"] in names}
    return ids


def require_tokenizers(plan: Plan, parts: Collection[str]) -> None:
    """Refuse text encoders among ``parts`` without a tokenizer, or with that of another one.

    Raises ``CheckpointError``.
    """
    flows = [plan.model.flow(task) for task in plan.tasks]
    calls = [call for flow in flows for call in flow.calls]
    calls += [] if plan.model.text is None else plan.model.text.calls
    pairs = {
        (call.part, source.tokenizer)
        for call in calls
        for source in call.sources()
        if isinstance(source, Tokens) and plan.spec(call.part).kind == "text_encoder"
    }
    for part, tokenizer in sorted(pairs):
        if part in parts:
            _require_match(plan, part, tokenizer)


def _require_match(plan: Plan, part: str, name: str) -> None:
    from mtu_export.bundle import source_tokenizer, tokenizer

    encoder, folder = plan.spec(part).folder, plan.checkpoint / name
    if not folder.is_dir():
        raise CheckpointError(
            checkpoint.refusal(plan.checkpoint, name)
            or f"{plan.checkpoint} has {encoder}/ but no {name}/ to go with it"
        )
    source = source_tokenizer.read(checkpoint.on_disk(folder))
    try:
        config = checkpoint.read_json(plan.checkpoint / encoder / "config.json")
        tokenizer.matches(source, config)
    except CheckpointError as error:
        raise CheckpointError(f"{folder} is not the tokenizer of {encoder}/: {error}") from None
    if plan.model.embeddings:
        for embedding in plan.model.embeddings:
            _require_new(embedding, source, name)
        whole = read(plan, name)
        for embedding in plan.model.embeddings:
            _require_whole(embedding, whole, name)


def _require_new(embedding: Embedding, source: Tokenizer, name: str) -> None:
    for token in embedding.tokens:
        if source.engine.token_to_id(token) is not None:
            raise PlanError(
                f"--embedding {embedding.path}: {name} has a token {shown(token)} already; name "
                f"another: {embedding.path.name}:<name>"
            )


def _require_whole(embedding: Embedding, tokenizer: Tokenizer, name: str) -> None:
    """Refuse a token of which the tokenizer makes other ids than its own."""
    token = embedding.tokens[0]
    ids = [tokenizer.engine.token_to_id(each) for each in embedding.tokens]
    made = tokenizer.encode(token)[0][0, 1 : 2 + len(ids)].tolist()
    if made != [*ids, tokenizer.eos]:
        raise PlanError(
            f"--embedding {embedding.path}: {name} does not read {shown(token)} as a token of "
            f"{len(ids)} vector{'s' * (len(ids) > 1)}; name another: {embedding.path.name}:<name>"
        )
