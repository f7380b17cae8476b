"""The rules on modules made for the purpose; `test_plan.py` has them on whole models."""

from typing import Any

import pytest
import torch
from pytorch_quantization import nn as quant_nn
from torch import Tensor, nn

from qdqpatch.nn.linear import QuantEmbedding, QuantLinear
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.rules import RULES
from qdqpatch.rules.base import Match, Miss
from qdqpatch.rules.linears import Embeddings, Linears
from qdqpatch.rules.matmuls import AttentionMatmuls


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
    return {each.path: each for each in rule.match(model)}


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
        (operation, "Eager.forward does not call transformers' attention interface")
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


def test_the_table_of_architectures() -> None:
    assert set(RULES) >= {"bert"}
    for rules in RULES.values():
        parts = [rule.part for rule in rules]
        assert {"linears", "matmuls", "residual_adds"} <= set(parts)
