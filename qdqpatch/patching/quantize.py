"""The verbs on a model: plan, quantize, dequantize."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel

from qdqpatch.config.config import QDQConfig
from qdqpatch.errors import NotQuantizedError, QuantizationWarning, QuantizedError
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.patching.apply import check_whole, is_quantized, own_config, quantized_part, set_fixed_ranges
from qdqpatch.patching.hf_quantizer import QDQHfQuantizer
from qdqpatch.patching.plan import Plan
from qdqpatch.patching.recorded import KEY
from qdqpatch.patching.sites import find_sites
from qdqpatch.patching.wrapped import unwrapped
from qdqpatch.rules.base import Rule

Model = TypeVar("Model", bound=nn.Module)


def plan(model: PreTrainedModel, config: QDQConfig | None = None, rules: Sequence[Rule] = ()) -> Plan:
    """List every place that would be quantized, and every one that would stay float, with the reason.

    The model is only read. Of a model that is quantized already, the plan it was made by is given,
    unless `config` is another.

    Args:
        model: A transformers model.
        config: What to quantize; None for the defaults.
        rules: Rules of your own (`qdqpatch.rules.base.Rule`), which come before the architecture's.

    Returns:
        The plan; printed, it is a table.

    Raises:
        UnsupportedModelError: If no rule knows the model, or nothing in it would be quantized.
        OverrideError: If an override matches no quantizer.
    """
    model = unwrapped(model)
    if not isinstance(model, PreTrainedModel) or not is_quantized(model):
        return find_sites(model, config, rules=rules)
    twin = float_twin(model)
    if config is not None:
        return find_sites(twin, config, rules=rules)
    return find_sites(twin, model.config.quantization_config, strict=False)


def quantize(model: Model, config: QDQConfig | None = None, rules: Sequence[Rule] = ()) -> Model:
    """Turn a loaded BERT, or another encoder, into a QDQBERT, in place.

    Linears are swapped for quantized ones that share their Parameters, and quantizers are inserted at
    attention's matmuls and at the residual adds. The model stays an instance of its class. Its ranges
    are computed from each tensor it sees until it is calibrated (`qdqpatch.calibrate`).

    Args:
        model: A float transformers model, on any device and in any floating-point dtype; or a
            `SentenceTransformer` or `CrossEncoder`, for the one inside it.
        config: What to quantize and how; None for QDQBERT's placement.
        rules: Rules of your own (`qdqpatch.rules.base.Rule`), which come before the architecture's.

    Returns:
        The same object.

    Raises:
        UnsupportedModelError: If no rule knows the model, or nothing in it would be quantized.
        OverrideError: If an override matches no quantizer.
        QuantizedError: If the model is quantized already.

    Whatever is raised, the model is as it was.

    Warns:
        QuantizationWarning: If something that the configuration turns on stays float all the same.

    Examples:
        >>> model = quantize(AutoModelForMaskedLM.from_pretrained("ckpt"))
        >>> type(model).__name__, type(model.bert.encoder.layer[0].output.dense).__name__
        ('BertForMaskedLM', 'QuantLinear')
    """
    inner = unwrapped(model)
    if part := quantized_part(inner):
        raise QuantizedError(
            f"The part {part} of this {type(inner).__name__} is quantized already, by a call of its own. "
            f"Call qdqpatch.dequantize(model.{part}), then quantize the whole, which is saved as one."
        )
    if isinstance(inner, PreTrainedModel) and is_quantized(inner):
        raise QuantizedError(
            f"This {type(inner).__name__} is quantized already. To quantize it otherwise, call "
            "qdqpatch.dequantize(model) first."
        )
    sites = find_sites(inner, config, rules=rules)
    if shortfall := sites.shortfall():
        warnings.warn(shortfall, QuantizationWarning, stacklevel=2)
    with own_config(inner):
        QDQHfQuantizer(sites.config).patch(inner, sites)
    set_fixed_ranges(inner, sites)
    return model


def dequantize(model: Model) -> Model:
    """Take every quantizer out again, in place; weights that were trained stay trained.

    Args:
        model: A model that `quantize` or `from_pretrained` quantized.

    Returns:
        The same object, a float model as before.

    Raises:
        NotQuantizedError: If the model has no quantizer.
    """
    inner = unwrapped(model) if isinstance(model, nn.Module) else model
    if not isinstance(getattr(inner, "hf_quantizer", None), QDQHfQuantizer):
        if isinstance(inner, nn.Module):
            check_whole(inner)
        raise NotQuantizedError(f"This {type(inner).__name__} was not quantized by qdqpatch.")
    # transformers' method, which asks our QDQHfQuantizer
    inner.dequantize()
    return model


def float_twin(model: Model) -> Model:
    """Return a float copy of a quantized model that shares its tensors, to be looked at.

    Raises:
        NotQuantizedError: If the model was not quantized by qdqpatch.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    for module in twin.modules():
        if isinstance(module, QuantLinear):
            module.load_input_scale(None)  # the weight, which is the model's, is not to change
    twin = dequantize(twin)
    setattr(twin.config, KEY, list(vars(model)["hf_quantizer"].record))
    return twin
