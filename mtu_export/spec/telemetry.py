"""Telemetry of libraries: off by default, on for a user who has set it so."""

from __future__ import annotations

import os


def turn_off() -> None:
    """Set the environment variables by which libraries send nothing, where the user has not.

    Called before huggingface_hub (which diffusers and transformers import) and ONNX Runtime are
    imported: they read them once.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
