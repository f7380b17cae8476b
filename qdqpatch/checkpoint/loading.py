"""Load a model by transformers' own `from_pretrained`, and see that all of it is what is on disk."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from qdqpatch.checkpoint.fitting import Request, check_fit
from qdqpatch.checkpoint.sizes import SIZES, check_counts, check_size
from qdqpatch.errors import CheckpointError, QdqError, one_line
from qdqpatch.nn.names import INPUT_SCALE, ZERO_POINT
from qdqpatch.patching.own_code import is_code_trusted

STATE = ("._amax", f".{ZERO_POINT}", f".{INPUT_SCALE}")
"""How the names of what only a quantized model has end."""


def load_fitting(
    model_class: Any, names: Collection[str], request: Request, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Load a checkpoint whose weights are those of the class.

    Args:
        model_class: A model's class, or an Auto class.
        names: The names of all weights in the checkpoint.
        request: What is to be loaded.
        **options: Passed on to `from_pretrained`.

    Returns:
        The model and the names of weights outside the encoder that the checkpoint lacks: they are random.

    Raises:
        CheckpointError: If transformers cannot load it, or class and weights do not fit.
    """
    try:
        model, info = model_class.from_pretrained(
            request.name, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except QdqError:
        raise
    except Exception as error:  # transformers lets through whatever a config or a file leads to
        raise CheckpointError(f"Cannot load {request.name}: {one_line(error)}") from error
    check_fit(model, info, names, request)
    return model, sorted(info["missing_keys"])


def check_unloaded(
    model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]], request: Request
) -> list[str]:
    """Do what `load_fitting` does with the shapes of the weights alone, which takes next to no memory.

    Args:
        model: A float model, on the meta device.
        shapes: The shape of each weight, by its name in the checkpoint.
        request: What is to be loaded.

    Returns:
        The names of weights outside the encoder that the checkpoint lacks.

    Raises:
        CheckpointError: If class and weights do not fit.
    """
    config = copy.deepcopy(model.config)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    if hasattr(config, "quantization_config"):
        shapes = {name: shape for name, shape in shapes.items() if not name.endswith(STATE)}
        del config.quantization_config
    # Memory that nothing is written to is only promised.
    state = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
    try:
        model_class: Any = type(model)
        _, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:
        raise CheckpointError(f"Cannot load {request.name}: {one_line(error)}") from error
    check_fit(model, info, shapes, request)
    return sorted(info["missing_keys"])


def model_on_meta(
    model_class: Any,
    config: PreTrainedConfig,
    name: str,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> PreTrainedModel:
    """Build a model without memory for its weights.

    Args:
        model_class: Its class.
        config: Its config.
        name: The checkpoint, for the error.
        shapes: The shape of each weight, by its name in the checkpoint; None where they are not known.

    Raises:
        CheckpointError: If its config is that of no model, or of another one than the weights are of.
    """
    if shapes is not None:
        check_counts(config.to_dict(), name, shapes)
    sizes = {size: getattr(config, size, None) for size in SIZES}
    if wrong := [size for size, value in sizes.items() if isinstance(value, int) and value < 1]:
        raise CheckpointError(
            f"Cannot build a model by the config.json of {name}: {wrong[0]} is {sizes[wrong[0]]}."
        )
    try:
        with torch.device("meta"):
            if hasattr(model_class, "from_config"):
                model: PreTrainedModel = model_class.from_config(config, trust_remote_code=is_code_trusted())
            else:
                model = model_class(config)
    except QdqError:
        raise
    except Exception as error:  # a value of a wrong type or size fails wherever it is used
        raise CheckpointError(
            f"Cannot build a model by the config.json of {name}: {one_line(error)} ({type(error).__name__})"
        ) from error
    if shapes is not None:
        check_size(model, shapes, name)
    return model
