"""Valid checkpoints and bundles, mutated at random, and what the exporter makes of them.

A mutant is a copy of a valid folder with one to three changes drawn from a ``random.Random``.
:func:`attempt` and :func:`attempt_bundle` put it through the public functions, which must either
raise an ``MtuExportError`` and leave nothing on disk, or export correctly. Used by
``tests/exporter/test_mutations.py`` and ``benchmarks/mutations.py``.
"""

from __future__ import annotations

from mtu_export.testing.campaigns.mutations.attempts import (
    CORRECT,
    VERIFIED,
    Unexpected,
    attempt,
    attempt_bundle,
)
from mtu_export.testing.campaigns.mutations.bundles import make_bundle, mutate_bundle
from mtu_export.testing.campaigns.mutations.checkpoints import BASES, TASKS, make_base, mutate

__all__ = [
    "BASES",
    "CORRECT",
    "TASKS",
    "VERIFIED",
    "Unexpected",
    "attempt",
    "attempt_bundle",
    "make_base",
    "make_bundle",
    "mutate",
    "mutate_bundle",
]
