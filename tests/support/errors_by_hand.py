"""What the method "auto" compares, computed by running one module again."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import named_quantizers


def result(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def errors_by_hand(
    model: PreTrainedModel,
    path: str,
    amaxes: list[float],
    held_back: list[dict[str, Tensor]],
    padding: bool,
    chosen: dict[str, Tensor] | None = None,
) -> list[float]:
    """The error of one operation with one quantizer on, and those of the same module that come before it."""
    for _, quantizer in named_quantizers(model):
        quantizer.disable_quant()
    module = model.get_submodule(path.rpartition(".")[0])
    calls: list[Any] = []
    handle = module.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((args, kwargs, result(output))), with_kwargs=True
    )
    with torch.no_grad():
        for batch in held_back:
            model(**batch)
    handle.remove()
    for name, child in module.named_children():
        if isinstance(child, TensorQuantizer) and not name.startswith("_weight"):
            child.enable_quant()
            if name == path.rpartition(".")[2]:
                break
            if not child.is_enabled:
                continue
            assert chosen is not None
            child.load_range(chosen[f"{path.rpartition('.')[0]}.{name}"])
    quantizer = model.get_submodule(path)
    errors = []
    for amax in amaxes:
        quantizer.load_range(torch.tensor(amax))
        error = 0.0
        for (args, kwargs, expected), batch in zip(calls, held_back, strict=True):
            with torch.no_grad():
                difference = result(module(*args, **kwargs)) - expected
            mask = batch["attention_mask"].bool() if padding else ...
            norm = expected.square().sum(-1)[mask]
            relative = difference.square().sum(-1)[mask] / torch.maximum(norm, norm.median())
            power = 4 if "add_" in path else 2
            error += float(relative.double().pow(power).sum())
        errors.append(error)
    return errors
