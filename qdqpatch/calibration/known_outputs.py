"""What a model returns whose divergence from the float model's is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qdqpatch import distributed
from qdqpatch.calibration.batching import as_tensors
from qdqpatch.calibration.observing import observing, on_device
from qdqpatch.errors import CalibrationError
from qdqpatch.patching.arguments import run
from qdqpatch.tasks.head import is_known

Batch = Mapping[str, Any]


def known_outputs(model: PreTrainedModel, inputs: Batch) -> dict[str, Tensor]:
    """Run the model, and return the outputs that a divergence is known of, by name.

    Raises:
        CalibrationError: If there is none.
        DataError: If the model does not take the inputs.
    """
    found = run(model, inputs)
    outputs = found if isinstance(found, Mapping) else {}  # a class of the user's own may give a tuple
    known = {name: value for name, value in outputs.items() if is_known(name) and isinstance(value, Tensor)}
    if not known:
        raise CalibrationError(
            f"{type(model).__name__} has no output that tuning knows, only "
            f"{', '.join(outputs) or 'some without names'}."
        )
    return known


def check_known_outputs(model: PreTrainedModel, batches: Iterable[Batch]) -> None:
    """Find out before the work, by the first batch alone, whether `known_outputs` finds any.

    Raises:
        CalibrationError: If not.
        DataError: If the model does not take the batch.
    """

    def run_first() -> None:
        for batch in islice(as_tensors(batches, model), 1):
            known_outputs(model, on_device(batch, model.device))

    with observing(model, {}), torch.no_grad():
        distributed.together(run_first, model.device)
