"""How long and at what rate a model is trained, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qdqpatch.errors import ConfigError
from qdqpatch.spelling import spelled


@dataclass(frozen=True)
class Schedule:
    """How a model is trained: AdamW with linear warmup and cosine decay.

    The defaults are those of fine-tuning after calibration: a tenth of three epochs, at a low rate ("Integer
    quantization for deep learning inference", arXiv 2004.09602).

    Attributes:
        epochs: Passes over the training data; also a part of one.
        lr: The highest learning rate.
        batch_size: Sequences in a step on one device.
        accumulate: Steps whose gradients are summed before the optimizer moves.
        warmup: The share of the steps in which the rate rises.
        weight_decay: Of matrices.
        seed: What the order of the data, and dropout, depend on.
        dropout: Whether dropout stays on; off, the rounding is the only noise.
        bf16: Whether to compute in bf16 by autocast; quantizers stay in fp32.

    Raises:
        ConfigError: If a number is out of its range.
    """

    epochs: float = 0.3
    lr: float = 2e-5
    batch_size: int = 16
    accumulate: int = 1
    warmup: float = 0.1
    weight_decay: float = 0.0
    seed: int = 0
    dropout: bool = False
    bf16: bool = False

    def __post_init__(self) -> None:
        for name, is_right, wanted in (
            ("epochs", self.epochs > 0, "above 0"),
            ("lr", self.lr > 0, "above 0"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("accumulate", self.accumulate >= 1, "at least 1"),
            ("warmup", 0 <= self.warmup < 1, "at least 0 and below 1"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("seed", 0 <= self.seed < 2**32, "from 0 to 4294967295"),
        ):
            if not is_right or not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{spelled(name)} must be a number {wanted}, not {getattr(self, name)}.")

    def steps(self, features: int) -> int:
        """Return how many optimizer steps a run on so many features has."""
        return max(1, math.ceil(self.epochs * features / (self.batch_size * self.accumulate)))
