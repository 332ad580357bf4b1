"""What the bench app is asked and what it answers; normative: ``runtime/ios/README.md``.

A request is JSON in the app's environment variable ``MTU_BENCH``. The app answers with
``Documents/bench/answer.json``, written whole, and ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtu_export.bench.devices.adb.client import printable
from mtu_export.bench.record import DeviceRecord, DeviceState
from mtu_export.spec import DeviceError
from mtu_export.spec.records import Count

FORMAT = 1
VARIABLE = "MTU_BENCH"
FOLDER = "Documents/bench"
ANSWER = f"{FOLDER}/answer.json"
LARGEST_ANSWER = 1_000_000
Verb = Literal["describe", "prepare", "verify", "run", "remove"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """``describe``: what the phone is, ``cool_s`` seconds at most after it has cooled down.
    ``prepare``: make ``folders`` below the session's. ``verify``: compare ``files`` with their
    SHA-256. ``run``: the session's job. ``remove``: the session's folder."""

    token: str
    verb: Verb
    session: str
    folders: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    cool_s: float = 0

    def text(self) -> str:
        """As the environment variable has it."""
        document = {**vars(self), "format": FORMAT, "folders": list(self.folders)}
        return json.dumps({**document, "files": dict(self.files)}, separators=(",", ":"))


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class App(_Part):
    """The app's own version."""

    version: Annotated[str, Field(max_length=100)]
    build: Annotated[str, Field(max_length=100)]


class AppDevice(_Part):
    """The phone as the app sees it."""

    model: Annotated[str, Field(max_length=100)]
    os: Annotated[str, Field(max_length=100)]
    arch: Annotated[str, Field(max_length=40)]
    cores: Count | None = None
    memory: Count | None = None
    page_size: Count | None = None
    emulated: bool = False

    def record(self) -> DeviceRecord:
        """For a benchmark record."""
        return DeviceRecord(
            kind="ios",
            model=printable(self.model),
            os=printable(self.os),
            arch=printable(self.arch),
            cores=self.cores,
            memory=self.memory,
            page_size=self.page_size,
            emulated=self.emulated,
        )


class Answer(_Part):
    """What the app leaves: ``wrong`` are files that ``verify`` did not find as they should be."""

    format: Literal[1]
    token: str
    status: Literal["done", "failed"]
    reason: Annotated[str, Field(max_length=1000)] | None = None
    app: App
    device: AppDevice
    state: DeviceState
    free_bytes: Count | None = None
    wrong: Annotated[tuple[str, ...], Field(max_length=100_000)] = ()


def parse(data: bytes, token: str) -> Answer | None:
    """An answer; None where it is that of an earlier request. Raises ``DeviceError``."""
    if len(data) > LARGEST_ANSWER:
        raise DeviceError(f"the bench app's answer has {len(data):,} bytes")
    try:
        answer = Answer.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its JSON"
        raise DeviceError(
            f"the bench app's answer cannot be read: {where}: {printable(first['msg'])}"
        ) from None
    return answer if answer.token == token else None
