"""The rules on modules made for the purpose; `test_plan.py` has them on whole models."""

import subprocess
import sys
from typing import Any

import models
import pytest
import torch
from pytorch_quantization import nn as quant_nn
from torch import Tensor, nn
from transformers import BertConfig, PreTrainedModel

from qdqpatch import QDQConfig, plan, quantize
from qdqpatch.errors import QuantizationWarning, UnsupportedModelError
from qdqpatch.nn.linear import QuantEmbedding, QuantLinear
from qdqpatch.nn.names import MATMUL
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.rules.base import Match, Miss
from qdqpatch.rules.linears import Embeddings, Linears
from qdqpatch.rules.matmuls import AttentionMatmuls
from qdqpatch.rules.rewriting import combined


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(3, 3)
        self.table = nn.Embedding(4, 3)


class LowRank(nn.Linear):
    """A subclass, of which nobody knows what it computes."""


class Scaled(nn.Embedding):
    """A subclass, of which nobody knows what it computes."""


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.outside = nn.Linear(3, 3)
        self.other_table = nn.Embedding(4, 3)


def found(rule: Any, model: nn.Module) -> dict[str, Match | Miss]:
    return {place.path: place for place in rule.match(model)}


def test_linears_are_found_inside_the_given_classes_only() -> None:
    (match,) = Linears(inside=(Inner,)).match(Outer())
    quantizers = {"_input_quantizer": "activation", "_weight_quantizer": "weight"}
    assert match == Match("inner.dense", "linear", quantizers, QuantLinear)


def test_a_linear_may_itself_be_the_given_class() -> None:
    assert found(Linears(inside=(nn.Linear,)), Outer()).keys() == {"inner.dense", "outside"}


def test_embeddings_have_a_weight_quantizer_only() -> None:
    (match,) = Embeddings(inside=(Inner,)).match(Outer())
    assert match == Match("inner.table", "embedding", {"_weight_quantizer": "weight"}, QuantEmbedding)


@pytest.mark.parametrize(
    ("rule", "name", "module"),
    [(Linears, "dense", LowRank(3, 3)), (Embeddings, "table", Scaled(4, 3))],
)
def test_a_subclass_is_a_miss_with_its_reason(rule: Any, name: str, module: nn.Module) -> None:
    model = Outer()
    setattr(model.inner, name, module)
    (miss,) = rule(inside=(Inner,)).match(model)
    assert isinstance(miss, Miss)
    assert miss.path == f"inner.{name}"
    assert miss.reason.startswith(f"it is a {type(module).__name__}, and only a plain nn.")


ALL_ATTENTION_FUNCTIONS: dict[str, Any] = {}
"""Stands in for transformers' interface, by whose name a class is known to call it."""


class Attention(nn.Module):
    def forward(self, query: Tensor) -> Any:
        return ALL_ATTENTION_FUNCTIONS["qdqpatch"](self, query)


class Caller(Attention):
    def forward(self, query: Tensor) -> Any:
        return super().forward(query + 1)


class Eager(Attention):
    def forward(self, query: Tensor) -> Tensor:
        return query @ query


@pytest.mark.parametrize("attention", [Attention, Caller])
def test_attention_has_two_matmuls_of_two_operands(attention: type[nn.Module]) -> None:
    matches = list(AttentionMatmuls(inside=(Attention,)).match(nn.ModuleList([attention()])))
    assert [(match.path, match.operation, list(match.quantizers)) for match in matches] == [
        ("0", "query x key", ["matmul_q_input_quantizer", "matmul_k_input_quantizer"]),
        ("0", "probabilities x value", ["matmul_a_input_quantizer", "matmul_v_input_quantizer"]),
    ]
    assert all(issubclass(match.becomes, attention) for match in matches)


def test_attention_that_does_not_call_the_interface_stays_float() -> None:
    misses = list(AttentionMatmuls(inside=(Attention,)).match(Eager()))
    assert [(miss.operation, miss.reason) for miss in misses] == [
        (
            operation,
            "Eager.forward does not call transformers' attention interface, and has 1 matrix product where "
            "the rule needs 2",
        )
        for operation in ("query x key", "probabilities x value")
    ]


def test_a_quantized_linear_quantizes_input_and_weight() -> None:
    torch.manual_seed(0)
    layer = QuantLinear(5, 4)
    values = torch.randn(2, 3, 5)
    weight = TensorQuantizer(quant_nn.QuantLinear.default_quant_desc_weight)(layer.weight)
    assert torch.equal(layer(values), nn.functional.linear(TensorQuantizer()(values), weight, layer.bias))
    assert isinstance(layer, quant_nn.QuantLinear)
    assert isinstance(layer, nn.Linear)


def test_a_quantized_embedding_quantizes_its_rows() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(6, 4, padding_idx=0)
    expected = TensorQuantizer()(table.weight)[torch.tensor([[1, 5], [0, 2]])]
    table._weight_quantizer = TensorQuantizer()
    table.__class__ = QuantEmbedding
    outputs = table(torch.tensor([[1, 5], [0, 2]]))
    assert torch.equal(outputs, expected)
    outputs.sum().backward()
    assert table.weight.grad[[1, 5, 2]].eq(1).all()
    assert table.weight.grad[[0, 3, 4]].eq(0).all()


def test_importing_loads_the_modeling_file_of_no_architecture() -> None:
    lines = (
        "import sys, qdqpatch",
        "print(*(name for name in sys.modules if '.modeling_' in name and '.models.' in name))",
    )
    done = subprocess.run(
        [sys.executable, "-c", "; ".join(lines)], capture_output=True, text=True, check=True
    )
    assert not [name for name in done.stdout.split() if ".auto." not in name and ".bert." not in name]


class Own(nn.Module):
    """A model's layer under a known model type, but of another class, as remote code has it."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 4)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.dense(hidden)


class Remote(PreTrainedModel):
    config_class = BertConfig

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList([Own(), Own()])

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def test_a_known_model_type_of_other_classes_is_unknown() -> None:
    model = Remote(models.config())
    found = plan(model)
    assert found.unknown == ("bert",)
    assert [(site.path, site.operation) for site in found.sites] == [
        *((f"layers.{number}.dense", "linear") for number in (0, 1)),
        *((f"layers.{number}", "residual add") for number in (0, 1)),
    ]
    with pytest.warns(QuantizationWarning, match="There are no rules for bert made of these classes"):
        quantize(model)


def test_rules_of_ones_own_come_first() -> None:
    rules = [Linears(inside=(Own,), part="head")]
    found = plan(Remote(models.config()), QDQConfig(head=True, linears=False), rules=rules)
    assert [site.path for site in found.sites] == ["layers.0.dense", "layers.1.dense", "layers.0", "layers.1"]


class Odd(nn.Module):
    """A layer that no rule reaches altogether."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 4)
        self.convolution = nn.Conv1d(4, 4, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.einsum("bij,bjk->bik", self.dense(hidden), hidden)


def test_what_no_rule_reaches_in_an_unknown_model_is_told() -> None:
    model = Remote(models.config())
    model.layers.append(Odd())
    text = plan(model).shortfall()
    assert "matrix product of layers.2 (no rule knows the products in the methods of Odd)" in text
    assert "convolution of layers.2.convolution (convolutions are not quantized)" in text
    model.layers = nn.ModuleList([nn.Conv1d(4, 4, 1)])
    with pytest.raises(
        UnsupportedModelError, match=r"which computes with convolution\. Give rules of your own"
    ):
        plan(model)


class Inline(nn.Module):
    """Attention that multiplies itself, and asks for nothing."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = torch.matmul(query, key.transpose(-1, -2))
        return torch.bmm(scores.softmax(-1), value)


def test_products_are_wrapped_where_attention_computes_them() -> None:
    module = Inline()
    first, second = AttentionMatmuls(inside=(Inline,)).match(module)
    assert [match.operation for match in (first, second)] == ["query x key", "probabilities x value"]
    query, key, value = (torch.randn(2, 3, 4) for _ in range(3))
    expected = module(query, key, value)
    seen: dict[str, Tensor] = {}
    for name in (*first.quantizers, *second.quantizers):
        module.add_module(name, nn.Identity())
        module.get_submodule(name).register_forward_hook(
            lambda _, inputs, __, name=name: seen.update({name: inputs[0]})
        )
    module.__class__ = combined(first.becomes, second.becomes)
    assert torch.equal(module(query, key, value), expected)
    assert seen[MATMUL["q"]] is query
    assert torch.equal(seen[MATMUL["k"]], key.transpose(-1, -2))
    assert seen[MATMUL["v"]] is value


def test_another_number_of_products_is_a_miss() -> None:
    rule = AttentionMatmuls(inside=(Inline,), products=(("forward", (("q", "k"),)),))
    (miss,) = rule.match(Inline())
    assert isinstance(miss, Miss)
    assert miss.reason.endswith("has 2 matrix products where the rule needs 1")
