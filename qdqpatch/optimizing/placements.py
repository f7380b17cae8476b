"""What is quantized for an engine, by what the model is for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedModel

from qdqpatch.config.config import QDQConfig
from qdqpatch.patching.sites import find_sites
from qdqpatch.tasks.head import Meaning

Ranges = Literal["symmetric", "asymmetric", "Linears asymmetric"]

RANGES: dict[Ranges, dict[str, Any]] = {
    "symmetric": {},
    "asymmetric": {"activation": {"symmetric": False}},
    "Linears asymmetric": {
        "overrides": {
            "*._input_quantizer": {"symmetric": False},
            "*matmul*_a_input_quantizer": {"unsigned": True},
        }
    },
}
"""How activations are rounded, as fields of a `QDQConfig`: around zero; with a zero point; or with one where
a Linear reads them, with levels from 0 up for attention's probabilities, and around zero elsewhere."""


@dataclass(frozen=True)
class Placement:
    """What is quantized.

    Attributes:
        preset: The name of a preset.
        ranges: A key of `RANGES`.
        fuse_inputs: Whether quantizers that read one tensor get one range, as `ptq` takes it.
    """

    preset: str
    ranges: Ranges = "symmetric"
    fuse_inputs: bool = False

    def config_for(self, model: PreTrainedModel) -> QDQConfig:
        """Return the configuration for a float model, without overrides for what it has not.

        Raises:
            UnsupportedModelError: If nothing in it would be quantized.
        """
        config = QDQConfig.preset(self.preset, **RANGES[self.ranges])
        sites = find_sites(model, config, strict=False).sites
        paths = [f"{site.path}.{name}" for site in sites for name in site.quantizers]
        there = tuple(override for override in config.overrides if override.matches(paths))
        return dataclasses.replace(config, overrides=there)

    def __str__(self) -> str:
        return self.preset if self.ranges == "symmetric" else f"{self.preset}, {self.ranges}"


PLACEMENTS: dict[str, dict[Meaning, Placement]] = {
    "onnxruntime": {"states": Placement("linear-only", "asymmetric")},
    "openvino": {"states": Placement("linear-only", "asymmetric")},
    "tensorrt": {"states": Placement("qdqbert", fuse_inputs=True)},
}
"""Of an embedder every bit of attention counts, and its two products are a small part of the work; and what
rounding the outputs of Linears too would lose is more than a vector can."""

DEFAULTS = {
    "onnxruntime": Placement("no-residual", "asymmetric"),
    "openvino": Placement("no-residual", "Linears asymmetric"),
    "tensorrt": Placement("outputs", fuse_inputs=True),
}
"""Quantized residual adds gain no speed on a CPU and cost the most; TensorRT moves 9% less by them, and
writes and reads a tensor's integers once where all that read it have one range, and 28% less where Linears
have quantizers for their outputs as well. Zero points cost ONNX Runtime nothing; OpenVINO multiplies in
integers with them in Linears alone, and TensorRT has none."""


def placement_for(target: str, meaning: Meaning) -> Placement:
    """Return what is quantized for a target, by what the head's output means."""
    return PLACEMENTS[target].get(meaning, DEFAULTS[target])
