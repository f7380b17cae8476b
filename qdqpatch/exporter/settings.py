"""What a module says beside its tensors, so far as a trace of it depends on that."""

from __future__ import annotations

import json
import types
from collections.abc import Hashable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from qdqpatch.nn.linear import QuantEmbedding, QuantLinear
from qdqpatch.nn.quantizer import TensorQuantizer

SAID_OF_ORIGIN = ("_name_or_path", "name_or_path", "quantization_config", "transformers_version")
LEFT_BY_LOADING = (
    "hf_quantizer",
    "is_quantized",
    "quantization_method",
    "_weight_conversions",
    "_use_kernels",
)
FREE = frozenset({*SAID_OF_ORIGIN, *LEFT_BY_LOADING})
"""What a model or its configuration says that no trace depends on."""

OWN = frozenset({*vars(nn.Module()), "_is_hf_initialized", "_is_initialized", "warnings_issued"}) - {
    "training"
}
"""What torch and transformers keep in every module."""

HOOKS = ("_forward_pre_hooks", "_forward_hooks")
PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)
CALLED = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def settings_of(module: nn.Module) -> tuple[Hashable, ...]:
    """Return a module's settings, its configuration, the functions that it holds, and its hooks.

    A quantizer is on or off, and a quantized layer has a shape: what else they are stands in no trace.
    """
    if isinstance(module, TensorQuantizer):
        return (module.is_enabled,)
    if isinstance(module, (QuantLinear, QuantEmbedding)):
        return (module.weight.shape, module.weight.dtype)
    said = {name: value for name, value in vars(module).items() if name not in OWN and name not in FREE}
    hooks = (tuple(map(_function, vars(module)[name].values())) for name in HOOKS)
    return (*((name, _setting(value)) for name, value in said.items()), *hooks)


def _setting(value: Any) -> Hashable:
    """Return a value so that it can be compared; of a tensor or an unknown object the type."""
    if isinstance(value, PreTrainedConfig):
        config = {name: said for name, said in value.to_dict().items() if name not in FREE}
        return json.dumps(config, sort_keys=True, default=str)
    if isinstance(value, CALLED):
        return _function(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(map(_setting, value))
    if isinstance(value, dict):
        return tuple((str(name), _setting(one)) for name, one in value.items())
    kind = type(value).__qualname__
    return f"{kind} {value!r}" if isinstance(value, PLAIN) else kind


def _function(value: Any) -> Hashable:
    """Return the function itself, of whichever object it is a method."""
    function: Hashable = getattr(value, "__func__", value)
    return function
