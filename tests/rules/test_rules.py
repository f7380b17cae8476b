"""The rules on modules made for the purpose; `test_plan.py` has them on whole models."""

import copy
import pickle
from typing import Any

import pytest
import torch
from pytorch_quantization import nn as quant_nn
from torch import Tensor, nn

from qdqpatch.nn.linear import QuantEmbedding, QuantLinear
from qdqpatch.nn.names import LOCAL, RESIDUAL
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.rules import RULES
from qdqpatch.rules.adds import ResidualAdds, UntraceableError, quantized_class
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


def test_attention_has_two_matmuls_of_two_operands() -> None:
    matches = list(AttentionMatmuls(inside=(Inner,)).match(Outer()))
    assert [(match.path, match.operation, list(match.quantizers)) for match in matches] == [
        ("inner", "query x key", ["matmul_q_input_quantizer", "matmul_k_input_quantizer"]),
        ("inner", "probabilities x value", ["matmul_a_input_quantizer", "matmul_v_input_quantizer"]),
    ]
    assert all(issubclass(match.becomes, Inner) for match in matches)


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


# Blocks that own a residual add.


class Block(nn.Module):
    """Like `BertOutput`."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 4)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.dense(hidden) + residual


class Swapped(Block):
    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return residual + self.dense(hidden)


class InPlace(Block):
    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        out = self.dense(hidden)
        out += residual
        return out


class Method(Block):
    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.dense(hidden).add(residual)


class MethodInPlace(Block):
    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.dense(hidden).add_(residual)


class Function(Block):
    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return torch.add(self.dense(hidden), residual)


class Keyword(Block):
    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return torch.add(input=residual, other=self.dense(hidden))


class OwnParameter(Block):
    """Adds something of its own too, which is no residual add."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((4,), 0.25))

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.dense(hidden) + residual + self.shift


class OneInput(Block):
    """Computes from its input and adds to it, as pre-norm blocks do."""

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> Tensor:
        return hidden + self.dense(hidden)


BLOCKS = [Block, Swapped, InPlace, Method, MethodInPlace, Function, Keyword, OwnParameter, OneInput]


class Tagged(nn.Module):
    """Stands in for a quantizer: multiplies and keeps what it saw."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: Tensor) -> Tensor:
        self.seen = values
        return values * self.factor


def rewritten(block: nn.Module) -> nn.Module:
    block.add_module(LOCAL, Tagged(1.0))
    block.add_module(RESIDUAL, Tagged(3.0))
    block.__class__ = quantized_class(block)
    return block


@pytest.mark.parametrize("block_class", BLOCKS)
def test_operands_are_named_by_their_role_not_their_position(block_class: type[Block]) -> None:
    torch.manual_seed(0)
    block = block_class()
    hidden, residual = torch.randn(2, 4), torch.randn(2, 4)
    residual = hidden if block_class is OneInput else residual
    expected = block(hidden, residual) + 2 * residual
    block = rewritten(block)
    # The same sum in another order: each of its two roundings is within 2^-22 for values below 8.
    torch.testing.assert_close(block(hidden, residual), expected, rtol=0, atol=2**-20)
    assert getattr(block, RESIDUAL).seen is residual
    assert torch.equal(getattr(block, LOCAL).seen, block.dense(hidden))


@pytest.mark.parametrize("block_class", BLOCKS)
def test_a_rewritten_block_is_an_instance_of_its_class(block_class: type[Block]) -> None:
    block = rewritten(block_class())
    assert isinstance(block, block_class)
    assert type(block).__name__ == f"QDQ{block_class.__name__}"
    assert type(block).float_class is block_class


def test_blocks_of_a_kind_share_a_class() -> None:
    assert quantized_class(Block()) is quantized_class(Block())
    assert quantized_class(Block()) is not quantized_class(Swapped())


def test_blocks_that_share_a_class_compute_with_their_own_tensors() -> None:
    first, second = rewritten(OwnParameter()), rewritten(OwnParameter())
    assert type(first) is type(second)
    with torch.no_grad():
        second.shift += 1
        second.dense.load_state_dict(first.dense.state_dict())
    values = torch.ones(1, 4)
    assert torch.equal(second(values, values), first(values, values) + 1)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_a_rewritten_block_can_be_copied(duplicate: Any) -> None:
    block = rewritten(OwnParameter()).eval()
    block.note = "kept"
    twin = duplicate(block)
    assert type(twin) is type(block)
    assert twin.note == "kept"
    assert not twin.training
    values = torch.ones(1, 4)
    assert torch.equal(twin(values, values), block(values, values))
    with torch.no_grad():
        twin.dense.bias += 1
    assert not torch.equal(twin.dense.bias, block.dense.bias)


class NoAdd(Block):
    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.dense(hidden) * residual


class TwoAdds(Block):
    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.dense(self.dense(hidden) + residual) + residual


class AddOfInputs(Block):
    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.dense(hidden + residual)


class AddOfNumber(Block):
    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.dense(hidden) * residual + 1


class Branching(Block):
    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.dense(hidden) + residual if hidden.sum() > 0 else residual


@pytest.mark.parametrize(
    ("block_class", "reason"),
    [
        (NoAdd, "has 0 adds of the block's input"),
        (AddOfInputs, "has 0 adds of the block's input"),
        (AddOfNumber, "has 0 adds of the block's input"),
        (TwoAdds, "has 2 adds of the block's input"),
        (Branching, "torch.fx cannot trace Branching.forward: "),
    ],
)
def test_a_block_that_cannot_be_rewritten_says_why(block_class: type[Block], reason: str) -> None:
    with pytest.raises(UntraceableError, match=reason):
        quantized_class(block_class())
    (miss,) = ResidualAdds(inside=(Block,)).match(nn.Sequential(block_class()))
    assert isinstance(miss, Miss)
    assert (miss.path, miss.operation) == ("0", "residual add")
    assert reason in miss.reason


class FunctionalDropout(Block):
    """Asks for `self.training`, which a trace would freeze."""

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return nn.functional.dropout(self.dense(hidden), 0.5, self.training) + residual


@pytest.mark.parametrize("traced_in_training", [False, True])
def test_a_block_that_asks_for_its_mode_stays_float(traced_in_training: bool) -> None:
    with pytest.raises(UntraceableError, match=r"it asks for self\.training"):
        quantized_class(FunctionalDropout().train(traced_in_training))


class OptionalInput(Block):
    """Leaves an argument out, as callers do."""

    def forward(self, hidden: Tensor, residual: Tensor, scale: Tensor | None = None) -> Tensor:
        local = self.dense(hidden)
        if scale is not None:
            local = local * scale
        return local + residual


def test_a_block_whose_argument_may_be_left_out_stays_float() -> None:
    with pytest.raises(UntraceableError, match="its argument scale is optional"):
        quantized_class(OptionalInput())


class OwnConstant(Block):
    """Makes a tensor while it runs, which torch.fx puts onto the module that it traces."""

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.dense(hidden) * torch.tensor(2.0) + residual


def test_looking_at_a_block_leaves_no_trace_on_it() -> None:
    block = OwnConstant()
    before = set(vars(block))
    (miss,) = ResidualAdds(inside=(Block,)).match(nn.Sequential(block))
    assert isinstance(miss, Miss)
    assert miss.reason == "its forward makes a tensor, which a trace would freeze"
    assert set(vars(block)) == before
