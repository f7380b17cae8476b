"""Residual adds on blocks made for the purpose."""

import copy
import functools
import importlib.util
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from blocks import BLOCKS, Block, Checkpointing, OneInput, OptionalInput, OwnParameter, Swapped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qdqpatch.nn.names import LOCAL, RESIDUAL
from qdqpatch.rules.adds import ResidualAdds, add_names, quantized_classes
from qdqpatch.rules.base import Miss
from qdqpatch.rules.rewriting import combined
from qdqpatch.rules.source import SourceError


class Tagged(nn.Module):
    """Stands in for a quantizer: multiplies and keeps what it saw."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: Tensor) -> Tensor:
        self.seen = values
        return values * self.factor


def quantized(block: nn.Module) -> type[nn.Module]:
    (cls,) = quantized_classes(type(block))
    return cls


def rewritten(block: nn.Module) -> nn.Module:
    block.add_module(LOCAL, Tagged(1.0))
    block.add_module(RESIDUAL, Tagged(3.0))
    block.__class__ = quantized(block)
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
    assert type(block).__name__ == block_class.__name__
    assert type(block).float_class is block_class


def test_a_rewritten_method_is_called_like_its_own() -> None:
    made, own = quantized(OptionalInput()).forward, OptionalInput.forward
    assert inspect.signature(made) == inspect.signature(own)
    assert (made.__name__, made.__qualname__, made.__module__) == (
        own.__name__,
        own.__qualname__,
        own.__module__,
    )
    block, values = rewritten(OptionalInput()), torch.ones(1, 4)
    assert torch.equal(block(values, values, scale=torch.zeros(1)), 3 * values)


def test_a_traceback_shows_the_models_own_line() -> None:
    block = rewritten(Block())
    with pytest.raises(RuntimeError) as error:
        block(torch.ones(1, 3), torch.ones(1, 3))
    entry = next(entry for entry in error.traceback if entry.frame.code.name == "forward")
    assert str(entry.statement).strip() == "return self.dense(hidden) + residual"


def test_checkpointing_runs_the_rewritten_layer_again() -> None:
    block = rewritten(Checkpointing()).train()
    calls = []
    block.dense.register_forward_pre_hook(lambda *_: calls.append(1))
    block.gradient_checkpointing = True
    block._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
    values = torch.ones(1, 4, requires_grad=True)
    block(values, values).sum().backward()
    assert len(calls) == 2


def test_blocks_of_a_kind_share_a_class() -> None:
    assert quantized(Block()) is quantized(Block())
    assert quantized(Block()) is not quantized(Swapped())


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


class AddOfInputs(Block):
    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.dense(hidden + residual)


class AddOfNumber(Block):
    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        length = hidden.shape[0] + 1
        return self.dense(hidden) * residual + length


class AddOfTuples(Block):
    def forward(self, hidden: Tensor, residual: Tensor) -> Any:
        outputs = (residual,)
        return outputs + (self.dense(hidden),)  # noqa: RUF005


class TwoAdds(Block):
    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.dense(self.dense(hidden) + residual) + residual


class Calling(Block):
    """Leaves the add to the class that it inherits from."""

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return super().forward(hidden, residual)


def made_elsewhere() -> type[Block]:
    space: dict[str, Any] = {"Block": Block}
    exec("class NoSource(Block):\n    def forward(self, hidden, residual):\n        return hidden", space)
    return space["NoSource"]


@pytest.mark.parametrize(
    ("block_class", "reason"),
    [
        (NoAdd, "has 0 adds of the block's input"),
        (AddOfInputs, "has 0 adds of the block's input"),
        (AddOfNumber, "has 0 adds of the block's input"),
        (AddOfTuples, "has 0 adds of the block's input"),
        (Calling, "has 0 adds of the block's input"),
        (TwoAdds, "has 2 adds of the block's input to a computed tensor, and the rule needs exactly one"),
        (made_elsewhere(), "the source of NoSource.forward cannot be read"),
    ],
)
def test_a_block_that_cannot_be_rewritten_says_why(block_class: type[Block], reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        quantized_classes(block_class)
    (miss,) = ResidualAdds(inside=(Block,)).match(nn.Sequential(block_class()))
    assert isinstance(miss, Miss)
    assert (miss.path, miss.operation) == ("0", "residual add")
    assert reason in miss.reason


def test_a_source_that_changed_since_it_was_imported_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "changing.py"
    lines = (
        "from torch import nn",
        "class Late(nn.Module):",
        "    def forward(self, x, y):",
        "        return x * 2 + y",
    )
    file.write_text("\n".join(lines))
    specification = importlib.util.spec_from_file_location("changing", file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    file.write_text(file.read_text().replace("x * 2", "x * 3"))
    with pytest.raises(SourceError, match=r"changing.py is not what Late.forward was compiled from"):
        quantized_classes(module.Late)


class Layer(nn.Module):
    """Owns both adds of an encoder layer, and may skip one between them."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.cross, self.ffn = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, hidden: Tensor, other: Tensor | None = None) -> Tensor:
        residual = hidden
        hidden = residual + self.attention(hidden)
        if other is not None:
            residual = hidden
            hidden = self.cross(hidden) * other
            hidden += residual
        return hidden + self.ffn(hidden)


def test_adds_of_one_block_are_numbered_as_they_run() -> None:
    matches = list(ResidualAdds(inside=(Layer,), count=3).match(Layer()))
    assert [(match.operation, *match.quantizers) for match in matches] == [
        (f"residual add {number}", *names) for number, names in enumerate(add_names(3), 1)
    ]
    assert add_names(3)[1] == ("add2_local_input_quantizer", "add2_residual_input_quantizer")


def test_a_block_can_have_some_of_its_adds_quantized() -> None:
    torch.manual_seed(0)
    layer, values = Layer(), torch.randn(2, 4)
    first, _, third = quantized_classes(Layer, 3)
    both = combined(first, third)
    assert both is combined(third, first)
    assert combined(both, first) is both
    for name in (*add_names(3)[0], *add_names(3)[2]):
        layer.add_module(name, Tagged(1.0))
    expected = layer(values, values)
    layer.__class__ = both
    assert torch.equal(layer(values, values), expected)
    assert layer.add1_residual_input_quantizer.seen is values
    assert torch.equal(
        layer.add3_residual_input_quantizer.seen + layer.add3_local_input_quantizer.seen, expected
    )


class Adapter(Block):
    """Has an add in another method, whose residual depends on a branch."""

    before = False

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.adapt(self.dense(hidden) + residual)

    def adapt(self, hidden: Tensor) -> Tensor:
        if not self.before:
            residual = hidden
        hidden = hidden.tanh()
        if self.before:
            residual = hidden
        hidden = self.dense(hidden)
        hidden += residual
        return hidden


def test_an_add_of_another_method_comes_after_those_of_forward() -> None:
    torch.manual_seed(0)
    rules = (ResidualAdds(inside=(Adapter,)), ResidualAdds(inside=(Adapter,), method="adapt"))
    block = Adapter()
    (first,), (second,) = (list(rule.match(block)) for rule in rules)
    assert (second.operation, *second.quantizers) == ("residual add 2", *add_names(2)[1])
    for name in (*first.quantizers, *second.quantizers):
        block.add_module(name, Tagged(1.0))
    hidden, residual = torch.randn(2, 4), torch.randn(2, 4)
    expected = block(hidden, residual)
    block.__class__ = combined(first.becomes, second.becomes)
    assert torch.equal(block(hidden, residual), expected)
    adapted = block.dense(hidden) + residual
    assert torch.equal(block.add2_residual_input_quantizer.seen, adapted)
    assert torch.equal(block.add2_local_input_quantizer.seen, block.dense(adapted.tanh()))
    (miss,) = ResidualAdds(inside=(Adapter,), count=2, method="adapt").match(Adapter())
    assert miss.reason.startswith("its adapt has 1 add of the block's input")
