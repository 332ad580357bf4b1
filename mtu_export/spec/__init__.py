"""The nouns of mtu-export: frozen data, the two protocols, and the error tree.

Nothing here imports more than the standard library. Data is checked once, at construction.
"""

from __future__ import annotations

from mtu_export.spec.errors import (
    BundleError,
    CheckpointError,
    DeviceError,
    MissingWeights,
    MtuExportError,
    NotFoldable,
    OutputExists,
    ParityError,
    PlanError,
    ResourceError,
    ToolchainError,
    ToolchainMissing,
    UnknownName,
    Unsupported,
)
from mtu_export.spec.loop import HISTORY, MOST_PASSES, Pass, Schedule
from mtu_export.spec.plan import (
    Arrays,
    Cost,
    Lowered,
    Pipeline,
    Plan,
    Program,
    Specialised,
    Structure,
    TensorSpec,
    Verdict,
)
from mtu_export.spec.protocols import (
    Family,
    Session,
    Target,
)
from mtu_export.spec.scheme import (
    FloatWeights,
    Granularity,
    IntWeights,
    KeepFloat,
    PerChannel,
    PerGroup,
    PerTensor,
    Scheme,
)
from mtu_export.spec.task import (
    CONDITIONING_CHANNELS,
    GUIDANCE_SCALES,
    Conditioning,
    Guidance,
    Task,
    refuse_unknown_keys,
    shown,
)

__all__ = [
    "CONDITIONING_CHANNELS",
    "GUIDANCE_SCALES",
    "HISTORY",
    "MOST_PASSES",
    "Arrays",
    "BundleError",
    "CheckpointError",
    "Conditioning",
    "Cost",
    "DeviceError",
    "Family",
    "FloatWeights",
    "Granularity",
    "Guidance",
    "IntWeights",
    "KeepFloat",
    "Lowered",
    "MissingWeights",
    "MtuExportError",
    "NotFoldable",
    "OutputExists",
    "ParityError",
    "Pass",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "Pipeline",
    "Plan",
    "PlanError",
    "Program",
    "ResourceError",
    "Schedule",
    "Scheme",
    "Session",
    "Specialised",
    "Structure",
    "Target",
    "Task",
    "TensorSpec",
    "ToolchainError",
    "ToolchainMissing",
    "UnknownName",
    "Unsupported",
    "Verdict",
    "refuse_unknown_keys",
    "shown",
]
