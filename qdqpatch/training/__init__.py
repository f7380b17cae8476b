"""Quantization-aware training: ranges that learn, distillation from the float model, and the whole way."""

from typing import TYPE_CHECKING

from qdqpatch import lazy

if TYPE_CHECKING:
    from qdqpatch.training.distillation import Distillation, distillation_loss
    from qdqpatch.training.ranges import freeze_ranges, parameter_groups, train_ranges
    from qdqpatch.training.trainer import DistillationTrainer
else:
    __getattr__ = lazy.attributes(
        __name__,
        {
            "Distillation": "distillation",
            "DistillationTrainer": "trainer",
            "distillation_loss": "distillation",
            "freeze_ranges": "ranges",
            "parameter_groups": "ranges",
            "train_ranges": "ranges",
        },
    )

__all__ = [
    "Distillation",
    "DistillationTrainer",
    "distillation_loss",
    "freeze_ranges",
    "parameter_groups",
    "train_ranges",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
