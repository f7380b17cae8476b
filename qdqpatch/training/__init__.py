"""Quantization-aware training: ranges that learn, distillation from the float model, and the whole way."""

from qdqpatch.training.distillation import Distillation, distillation_loss
from qdqpatch.training.ranges import freeze_ranges, parameter_groups, train_ranges
from qdqpatch.training.trainer import DistillationTrainer

__all__ = [
    "Distillation",
    "DistillationTrainer",
    "distillation_loss",
    "freeze_ranges",
    "parameter_groups",
    "train_ranges",
]
