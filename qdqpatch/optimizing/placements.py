"""What is quantized for an engine, by what the model is for."""

from __future__ import annotations

from qdqpatch.config.config import QDQConfig
from qdqpatch.tasks.head import Meaning

PLACEMENTS: dict[str, dict[Meaning, str]] = {
    "onnxruntime": {"states": "linear-only"},
    "openvino": {"states": "linear-only"},
    "tensorrt": {},
}
"""Of an embedder every bit of attention counts, and its two products are a small part of the work."""

DEFAULTS = {"onnxruntime": "no-residual", "openvino": "no-residual", "tensorrt": "qdqbert"}
"""Quantized residual adds gain no speed on a CPU and cost the most; TensorRT moves 9% less by them."""


def preset_for(target: str, meaning: Meaning) -> str:
    """Return the name of the preset for a target and what the head's output means."""
    return PLACEMENTS[target].get(meaning, DEFAULTS[target])


def config_for(target: str, meaning: Meaning) -> QDQConfig:
    """Return what is quantized."""
    return QDQConfig.preset(preset_for(target, meaning))
