"""Tiny models of every head, their inputs, and ways to compare two models."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import BertConfig, PreTrainedModel

import qdqpatch
from qdqpatch.patching.apply import named_quantizers

Tensors = dict[str, Tensor]

# Heads of 12 features, whose square root is no power of two, so that the order of the operations shows. No
# dropout, so that train mode gives the same outputs.
CONFIG = {
    "vocab_size": 48,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
HEADS: dict[str, dict[str, Any]] = {
    "BertModel": {},
    "BertLMHeadModel": {"is_decoder": True},
    "BertForPreTraining": {},
    "BertForMaskedLM": {},
    "BertForSequenceClassification": {"num_labels": 3},
    "BertForNextSentencePrediction": {},
    "BertForMultipleChoice": {},
    "BertForTokenClassification": {"num_labels": 3},
    "BertForQuestionAnswering": {},
}
CROSS = "BertLMHeadModel with cross-attention"
CHANGES = HEADS | {CROSS: {"is_decoder": True, "add_cross_attention": True}}

PARTS_ON = {"embeddings": True, "pooler": True, "head": True}


def model_class(name: str) -> type[PreTrainedModel]:
    """Return the class of a head; a key of `CHANGES`."""
    return getattr(transformers, name.split()[0])


def config(name: str = "BertModel", **changes: Any) -> BertConfig:
    """Return the tiny configuration of a head."""
    return BertConfig(**CONFIG | CHANGES[name] | changes)


def build(name: str = "BertModel", attn_implementation: str | None = None, **changes: Any) -> PreTrainedModel:
    """Build a float model in eval mode whose biases are not 0 and whose LayerNorm weights are not 1."""
    torch.manual_seed(7)
    tiny = config(name, **changes)
    if attn_implementation is not None:
        tiny._attn_implementation = attn_implementation
    model = model_class(name)(tiny).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def inputs(name: str = "BertModel", seed: int = 1, length: int = 8, padded: bool = True) -> Tensors:
    """Return keyword arguments for a head: two rows, the second one padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, length) if name == "BertForMultipleChoice" else (2, length)
    tokens = torch.randint(1, CONFIG["vocab_size"], shape, generator=generator)
    mask = torch.ones_like(tokens)
    if padded:
        mask[1, ..., length - 3 :] = 0
    batch = {
        "input_ids": tokens * mask,
        "attention_mask": mask,
        "token_type_ids": torch.randint(0, 2, shape, generator=generator),
    }
    if name == CROSS:
        batch["encoder_hidden_states"] = torch.randn(2, 5, CONFIG["hidden_size"], generator=generator)
        batch["encoder_attention_mask"] = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return batch


def labels(name: str) -> Tensors:
    """Return keyword arguments that make the head compute its loss; none for the bare model."""
    tokens = inputs(name)["input_ids"]
    match name:
        case "BertModel":
            return {}
        case "BertForPreTraining":
            return {"labels": tokens, "next_sentence_label": torch.tensor([0, 1])}
        case "BertForTokenClassification":
            return {"labels": tokens % 3}
        case "BertForQuestionAnswering":
            return {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])}
        case "BertForSequenceClassification" | "BertForNextSentencePrediction" | "BertForMultipleChoice":
            return {"labels": torch.tensor([0, 1])}
    return {"labels": tokens}


def float_model(name: str = "BertModel") -> PreTrainedModel:
    """Return a fresh float model, the same weights each time."""
    return copy.deepcopy(_shared("float", name))


def uncalibrated(name: str = "BertModel") -> PreTrainedModel:
    """Return a fresh quantized model without ranges."""
    return copy.deepcopy(_shared("uncalibrated", name))


def calibrated(name: str = "BertModel") -> PreTrainedModel:
    """Return a fresh quantized model with a range on every quantizer."""
    return copy.deepcopy(_shared("calibrated", name))


@functools.cache
def _shared(state: str, name: str) -> PreTrainedModel:
    # Never run and never changed: running leaves hooks of transformers on a model.
    if state == "float":
        return build(name)
    if state == "uncalibrated":
        return qdqpatch.quantize(float_model(name))
    return qdqpatch.calibrate(uncalibrated(name), [inputs(name, seed) for seed in (2, 3)], "percentile")


def batches(count: int = 3, seed: int = 21) -> list[Tensors]:
    """Return padded batches for `BertModel`, no two alike."""
    return [inputs(seed=number) for number in range(seed, seed + count)]


def outputs(model: nn.Module, name: str = "BertModel", **changes: Any) -> Tensors:
    """Run the model on its head's inputs without gradients; return every tensor it gives, by name."""
    with torch.no_grad():
        return flatten(model(**inputs(name) | changes))


def flatten(result: Any) -> Tensors:
    """Name every tensor of a model's output; the i-th of a tuple `name` is `name.i`. A cache is left out."""
    tensors = {}
    for name, value in result.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, tuple):
            tensors.update({f"{name}.{i}": tensor for i, tensor in enumerate(value)})
    return tensors


def gradients(model: nn.Module, name: str) -> Tensors:
    """Run one training step's backward pass in the model's present mode; return every gradient."""
    model.zero_grad(set_to_none=True)
    result = model(**inputs(name), **labels(name))
    loss = result["loss"] if "loss" in result else result[0].square().sum() + result[1].square().sum()
    loss.backward()
    return {
        path: parameter.grad.clone()
        for path, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def ranges(model: nn.Module) -> dict[str, Tensor | None]:
    """Return a copy of every quantizer's range, by its path."""
    return {
        path: None if quantizer.amax is None else quantizer.amax.clone()
        for path, quantizer in named_quantizers(model)
    }


def assert_equal(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare tensors by name, bit for bit and with their dtypes; None equals None."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        other = actual[name]
        if value is None or other is None:
            assert value is other, name
        else:
            assert other.dtype == value.dtype, name
            assert torch.equal(other, value), name


def snapshot(model: PreTrainedModel) -> dict[str, Any]:
    """Return everything about a model that a failed or a reading call must leave alone."""
    return {
        "class": type(model),
        "modules": [(path, type(module), module.training) for path, module in model.named_modules()],
        "attributes": {path: sorted(vars(module)) for path, module in model.named_modules()},
        "identities": {name: id(tensor) for name, tensor in model.named_parameters()},
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "config": (id(model.config), copy.deepcopy(model.config.to_dict())),
        "attention": model.config._attn_implementation,
        "method": getattr(model, "quantization_method", None),
        "hf_quantizer": getattr(model, "hf_quantizer", None),
    }


def assert_refused(
    change: Callable[[PreTrainedModel], object], model: PreTrainedModel, error: type[Exception], message: str
) -> None:
    """See that a change raises, says why, and leaves the model as it was."""
    before = snapshot(model)
    with pytest.raises(error, match=message):
        change(model)
    assert_unchanged(model, before)


def assert_unchanged(model: PreTrainedModel, before: dict[str, Any]) -> None:
    """Compare a model with its snapshot; NaN equals NaN."""
    after = snapshot(model)
    tensors, expected = after.pop("tensors"), before["tensors"]
    for look in (torch.isnan, torch.nan_to_num):
        assert_equal(*({name: look(tensor) for name, tensor in some.items()} for some in (tensors, expected)))
    for key, value in after.items():
        assert value == before[key], key
