"""What is quantized for an engine, by what the model is for."""

from __future__ import annotations

from dataclasses import dataclass

from qdqpatch.config.config import QDQConfig
from qdqpatch.tasks.head import Meaning


@dataclass(frozen=True)
class Placement:
    """What is quantized.

    Attributes:
        preset: The name of a preset.
        symmetric: Whether ranges of activations are symmetric; else they have a zero point.
    """

    preset: str
    symmetric: bool = True

    @property
    def config(self) -> QDQConfig:
        """The configuration."""
        return QDQConfig.preset(
            self.preset, **({} if self.symmetric else {"activation": {"symmetric": False}})
        )

    def __str__(self) -> str:
        return self.preset if self.symmetric else f"{self.preset}, asymmetric"


PLACEMENTS: dict[str, dict[Meaning, Placement]] = {
    "onnxruntime": {"states": Placement("linear-only", symmetric=False)},
    "openvino": {"states": Placement("linear-only", symmetric=False)},
    "tensorrt": {},
}
"""Of an embedder every bit of attention counts, and its two products are a small part of the work."""

DEFAULTS = {
    "onnxruntime": Placement("no-residual", symmetric=False),
    "openvino": Placement("no-residual"),
    "tensorrt": Placement("qdqbert"),
}
"""Quantized residual adds gain no speed on a CPU and cost the most; TensorRT moves 9% less by them. Zero
points cost ONNX Runtime nothing; OpenVINO multiplies in integers with them in Linears alone, and TensorRT has
none."""


def placement_for(target: str, meaning: Meaning) -> Placement:
    """Return what is quantized for a target, by what the head's output means."""
    return PLACEMENTS[target].get(meaning, DEFAULTS[target])
