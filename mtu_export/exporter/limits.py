"""The contract's limits on a bundle (``runtime/README.md``), as an export can tell them early.

``bundle.write_manifest`` refuses whatever else no reader would accept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from mtu_export import bundle, checkpoint
from mtu_export.bundle.manifest import ScheduleRecord
from mtu_export.spec import Plan, PlanError, Schedule
from mtu_export.spec.records import MOST_ENTRIES

TABLES_BYTES = bundle.LIMIT - 1_000_000
"""Bytes of the manifest that the loop's tables may take; the rest of it is far below the others."""
_PASS_BYTES = 181
"""The least that a pass of a table takes in the manifest."""
_OWN_FILES = 4
"""Rows of ``files`` for goldens, constants and two tokenizers; the others are licences."""


def require_within_limits(plan: Plan) -> None:
    """Refuse more tasks, LoRAs, licences or steps than a bundle holds. Raises ``PlanError``."""
    _require("tasks", len(plan.tasks), MOST_ENTRIES, "; export several bundles")
    _require("--lora", len(plan.loras), MOST_ENTRIES)
    _require("--embedding", len(plan.model.embeddings), MOST_ENTRIES)
    licences = checkpoint.licences(plan.checkpoint)
    _require("LICENSE files", len(licences), MOST_ENTRIES - _OWN_FILES)
    tables = 1 + len(plan.strengths) * any(task.strength is not None for task in plan.tasks)
    steps = sum(plan.steps) * tables
    _require("steps of --bake-steps in all", steps, TABLES_BYTES // _PASS_BYTES, "; bake fewer")


def require_tables_fit(tables: Mapping[tuple[int, float | None], Schedule]) -> None:
    """Refuse tables that would not leave the manifest room. Raises ``PlanError``."""
    records = [ScheduleRecord.of(n, table).to_json() for (n, _), table in tables.items()]
    size = len(json.dumps({"loop": {"schedules": records}}, indent=1))
    _require("bytes of loop tables", size, TABLES_BYTES, ": bake fewer step counts")


def _require(what: str, count: int, most: int, remedy: str = "") -> None:
    if count > most:
        raise PlanError(f"a bundle holds at most {most:,} {what}, got {count:,}{remedy}")
