"""Checkpoints as contenders, in torch."""

from __future__ import annotations

import inspect

import torch

from qdqpatch.bench.inputs import PIXELS
from qdqpatch.bench.loading import Loaded
from qdqpatch.checkpoint.source import open_checkpoint
from qdqpatch.data.arrays import Arrays
from qdqpatch.engines.contenders import Contender
from qdqpatch.engines.sessions import Input
from qdqpatch.errors import ConfigError

TORCH_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What a torch model is given of these, as far as it takes them."""

SIMULATED = (
    "fake-quantized in float: torch rounds to int8 values and multiplies in float, which is slower than "
    "float alone; an exported model runs int8 kernels"
)


def load_checkpoint(contender: Contender) -> Loaded:
    """Load a checkpoint; nothing is said of its speed yet.

    Raises:
        CheckpointError: If transformers cannot load it, or it lacks weights.
        ConfigError: If it takes several texts at once.
    """
    source = open_checkpoint(contender.path)
    if source.model_class.__name__.endswith("ForMultipleChoice"):
        raise ConfigError(f"{contender} takes (batch, choices, length); bench makes (batch, length).")
    model, _ = source.load(finite=False)  # speed does not depend on it, and load time should not
    model.eval()
    parameters = inspect.signature(model.forward).parameters
    inputs = tuple(Input(name, (None, None), "int64") for name in TORCH_INPUTS if name in parameters)
    if "input_ids" not in parameters:
        inputs = (Input(PIXELS, (None, *(contender.facts.image or ())), "float32"),)

    def run(arrays: Arrays) -> object:
        with torch.inference_mode():
            return model(**{name: torch.from_numpy(array) for name, array in arrays.items()})

    return Loaded(contender, inputs, run, None if source.quantization is None else SIMULATED)
