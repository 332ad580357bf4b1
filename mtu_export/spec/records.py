"""Numbers and strings of a manifest with their ranges, and the base of its objects."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mtu_export.spec.loop import HISTORY, LARGEST_COEFFICIENT
from mtu_export.spec.task import LARGEST_COUNT, TASK_NAME

SCHEMA = (2, 0)
"""Major and minor version of what is written; every minor of this major is read."""
MOST_ENTRIES = 64
"""Of tasks, files, LoRAs, and the conditioning of a task."""
_LARGEST = 2**53 - 1  # a double holds every integer up to it
_FINITE = 1e300


def _integer(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_integer)
Count = Annotated[int, Field(ge=0, le=_LARGEST), WHOLE]
Side = Annotated[int, Field(ge=1, le=8192), WHOLE]
Channels = Annotated[int, Field(ge=1, le=1024), WHOLE]
Extent = Annotated[int, Field(ge=1, le=2**31 - 1), WHOLE]
Steps = Annotated[int, Field(ge=1, le=LARGEST_COUNT), WHOLE]
Scale = Annotated[float, Field(ge=-LARGEST_COUNT, le=LARGEST_COUNT)]
Number = Annotated[float, Field(ge=-_FINITE, le=_FINITE)]
Numbers = Annotated[tuple[Number, ...], Field(max_length=64)]
Decibels = Annotated[float, Field(ge=0, le=300)]
Coefficient = Annotated[float, Field(ge=-LARGEST_COEFFICIENT, le=LARGEST_COEFFICIENT)]
Positive = Annotated[float, Field(gt=0, le=LARGEST_COEFFICIENT)]
Factor = Annotated[float, Field(ge=1 / LARGEST_COEFFICIENT, le=LARGEST_COEFFICIENT)]
"""Of a float32 product or quotient: not 0 when it is rounded."""
Coefficients = Annotated[tuple[Coefficient, ...], Field(min_length=HISTORY, max_length=HISTORY)]
Features = Annotated[tuple[Coefficient, ...], Field(min_length=1, max_length=4096)]
Strength = Annotated[float, Field(gt=0, le=1)]
Path = Annotated[str, Field(min_length=1, max_length=255)]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
TaskName = Annotated[str, Field(pattern=f"^{TASK_NAME}$")]
Version = Annotated[str, Field(pattern=rf"^{SCHEMA[0]}\.[0-9]{{1,6}}$")]


class Record(BaseModel):
    """An object of the manifest. Strict: no value is converted to another type."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="ignore", validate_by_name=True, allow_inf_nan=False
    )

    def to_json(self) -> dict[str, Any]:
        """The object as JSON has it; keys that nobody set are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)
