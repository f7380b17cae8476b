"""Refuse a model with adapters of peft: what a merge leaves of it is at other places than the quantizers."""

from __future__ import annotations

from torch import nn

from qdqpatch.errors import ConfigError

LAYERS = "peft.tuners."
"""Where peft has the layers that it puts in the place of a model's own."""


def check_adapters(model: nn.Module) -> None:
    """Find out whether layers of a float model are adapters, such as LoRA's (Hu et al., arXiv 2106.09685).

    The Linears of low rank would be quantized too, and merging would leave ranges that belong to nothing.

    Raises:
        ConfigError: If there are any.
    """
    for path, module in model.named_modules():
        if any(one.__module__.startswith(LAYERS) for one in type(module).__mro__):
            raise ConfigError(
                f"{path} of {type(model).__name__} is an adapter of peft. Merge it first "
                "(merge_and_unload()), or quantize the model before the adapter is put into it."
            )
