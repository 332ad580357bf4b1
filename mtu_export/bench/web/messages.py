"""What the page is asked and what it posts back, checked before it is believed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationError

from mtu_export.bench.job import Calls, EngineRecord
from mtu_export.bench.record import BenchRecord, Seconds, Text
from mtu_export.spec import DeviceError
from mtu_export.spec.records import Count, Number

LARGEST_RECORD, LARGEST_EVENT = 4_000_000, 4_000
"""Bytes of what the page posts: its record, and one line on what it does."""
Provider = Literal["wasm", "webgpu"]
PROVIDERS: tuple[Provider, ...] = ("wasm", "webgpu")
Name = Annotated[str, Field(min_length=1, max_length=255)]


class Plan(BenchRecord):
    """What the page measures: ``paths`` of the bundle's files; providers in order.

    ``parts`` are the samples of a round by part, in order. Each of the ``rounds`` is a worker of
    its own. ``threads`` 0 leaves the number to the page; ``image`` and ``check`` say whether the
    whole picture is made and, in the first round, the goldens are compared; ``deadline_s`` is that
    of one provider.
    """

    format: Literal[1] = 1
    name: str
    task: str
    bytes: Count
    height: Count
    width: Count
    paths: tuple[str, ...]
    parts: dict[str, Count]
    providers: tuple[Provider, ...]
    rounds: Count
    warmup: Count
    threads: Count
    image: bool
    check: bool
    deadline_s: Seconds


class PageEvent(BenchRecord):
    """One line on what the page does, and the share that is done."""

    text: Annotated[str, Field(max_length=300)]
    done: Annotated[float, Field(ge=0, le=1)]


class PartRound(BenchRecord):
    """One part in one worker; after a failure the numbers that there are."""

    load_s: Seconds | None = None
    load_again_s: Seconds | None = None
    first_s: Seconds | None = None
    samples_s: Annotated[tuple[Seconds, ...], Field(max_length=10_000)] = ()


class PartResult(BenchRecord):
    """One part in one provider, in rounds."""

    status: Literal["measured", "failed"]
    reason: Text | None = None
    rounds: Annotated[tuple[PartRound, ...], Field(max_length=100)] = ()


class ImageRound(BenchRecord):
    """A whole picture in one worker, seconds without loading: the first time, and the second time
    where parts stay loaded."""

    load_s: Seconds
    first_s: Seconds
    seconds: Seconds | None


class ImageResult(BenchRecord):
    """Whole pictures in rounds; the calls of each part are those of the last picture of each."""

    steps: Count | None
    passes: Count
    rounds: Annotated[tuple[ImageRound, ...], Field(max_length=100)]
    calls: dict[Name, Calls]


class CheckResult(BenchRecord):
    """One verdict against the goldens; equal tensors are 999 dB. ``passed`` null: a figure."""

    part: Name
    stage: Text
    psnr_db: Number
    floor_db: Number
    passed: bool | None
    outputs: Annotated[dict[Name, Number], Field(max_length=20_000)]


class PageMemory(BenchRecord):
    """Bytes: ``wasm`` is WebAssembly's memory, which never shrinks, so its peak; ``heap`` that of
    JavaScript where the browser tells (``performance.memory``)."""

    wasm: Count | None
    heap: Count | None


class ProviderResult(BenchRecord):
    """One execution provider of ONNX Runtime Web; ``adapter`` describes the GPU."""

    provider: Provider
    status: Literal["measured", "failed", "not run"]
    reason: Text | None = None
    threads: Count | None = None
    engine: EngineRecord | None = None
    adapter: Text | None = None
    open_s: Seconds | None = None
    parts: Annotated[dict[Name, PartResult], Field(max_length=64)] = Field(default_factory=dict)
    image: ImageResult | None = None
    checks: Annotated[tuple[CheckResult, ...], Field(max_length=1000)] = ()
    memory: PageMemory | None = None


class PageRecord(BenchRecord):
    """What a browser measured; of its device what it tells. ``device_memory`` is GiB, rounded."""

    format: Literal[1]
    user_agent: Text
    platform: Text | None
    platform_version: Text | None
    model: Text | None
    architecture: Text | None
    mobile: bool | None
    cores: Count | None
    device_memory: Number | None
    secure_context: bool
    isolated: bool
    providers: Annotated[tuple[ProviderResult, ...], Field(min_length=1, max_length=4)]


def parse_record(data: bytes, plan: Plan) -> PageRecord:
    """The record of a page, of what it was asked; raises ``DeviceError`` in one line."""
    try:
        record = PageRecord.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "its JSON"
        raise DeviceError(f"the page's record is refused: {where}: {first['msg']}") from None
    if tuple(each.provider for each in record.providers) != plan.providers:
        raise DeviceError("the page's record is refused: other providers than it was asked for")
    for each in record.providers:
        names = {*each.parts, *(check.part for check in each.checks)} - {*plan.parts, "pipeline"}
        if names:
            raise DeviceError(f"the page's record is refused: it names {min(names)[:80]!r}")
        whole = {*each.parts} == {*plan.parts} and all(
            len(part.rounds) == plan.rounds and all(map(_is_whole, part.rounds))
            for part in each.parts.values()
        )
        if each.status == "measured" and not whole:
            raise DeviceError(f"the page's record is refused: {each.provider} is not complete")
        if each.status != "measured" and not each.reason:
            raise DeviceError(f"the page's record is refused: {each.provider} has no reason")
    return record


def _is_whole(each: PartRound) -> bool:
    return None not in (each.load_s, each.load_again_s, each.first_s) and bool(each.samples_s)
