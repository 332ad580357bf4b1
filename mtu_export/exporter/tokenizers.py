"""Whether each tokenizer of a checkpoint is that of its text encoder, before any work."""

from __future__ import annotations

from collections.abc import Collection

from mtu_export import checkpoint
from mtu_export.spec import CheckpointError, Plan
from mtu_export.spec.flow import Tokens


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
