"""Operations inside a module's own `forward` are compared by their operands, where they run."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qdqpatch.calibration.comparing import OperationComparison
from qdqpatch.nn.names import LOCAL, RESIDUAL
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.rules.rewriting import Wrap, rewritten

FIRST, SECOND = "matmul_x_input_quantizer", "matmul_y_input_quantizer"
ADD = Wrap("forward", "residual add", 1, (LOCAL, RESIDUAL))
PRODUCT = Wrap("forward", "product", 1, (FIRST, SECOND))
RANGES = [0.5, 2.0, 3.0]
QUANTIZER = TensorQuantizer()


class Block(nn.Module):
    """A pre-norm layer: the norm reads what came in, and nothing reads the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.dense = nn.Linear(6, 6)

    def forward(self, states: Tensor) -> Tensor:
        values = self.dense(self.norm(states))
        mixed = torch.matmul(values, values.transpose(1, 2))
        return states + torch.tanh(torch.matmul(mixed, values))


class PostNormBlock(Block):
    """A post-norm layer."""

    def forward(self, states: Tensor) -> Tensor:
        local = self.dense(states)
        return self.norm(local + states)


class Seen:
    """The inputs of the quantizers of a block in one run, and how often its Linear ran."""

    def __init__(self, block: nn.Module, names: tuple[str, str]) -> None:
        self.operands: dict[str, Tensor] = {}
        self.runs = 0
        for name in names:
            block.get_submodule(name).register_forward_hook(
                lambda _, given, output, name=name: self.operands.setdefault(name, given[0])
            )
        block.dense.register_forward_hook(self._count)

    def _count(self, *call: object) -> None:
        self.runs += 1


def quantized(cls: type[Block], wrap: Wrap) -> Block:
    torch.manual_seed(3)
    block = cls().eval()
    for name in wrap.quantizers:
        block.add_module(name, TensorQuantizer(if_quant=False))
    block.__class__ = rewritten(cls, [wrap])
    return block


def error(found: Tensor, expected: Tensor, power: int) -> float:
    norm = expected.square().sum(-1)
    relative = (found - expected).square().sum(-1) / norm.clamp(min=norm.median())
    return float(relative.double().pow(power).sum())


@pytest.mark.parametrize(
    ("cls", "wrap", "result", "power"),
    [
        (Block, ADD, lambda block, a, b: a + b, 4),
        (PostNormBlock, ADD, lambda block, a, b: block.norm(a + b), 4),
        (Block, PRODUCT, lambda block, a, b: a @ b, 2),
    ],
    ids=["add", "add before a norm", "product"],
)
def test_errors_are_those_of_the_operation_alone(
    cls: type[Block], wrap: Wrap, result: Callable[..., Tensor], power: int
) -> None:
    block, states = quantized(cls, wrap), 2 * torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(4))
    seen = Seen(block, wrap.quantizers)
    first, second = wrap.quantizers
    chosen = 2.5
    with torch.no_grad():
        for ranges, before in (({first: RANGES}, {}), ({second: RANGES}, {first: chosen})):
            comparison = OperationComparison(
                {f".{name}": amaxes for name, amaxes in ranges.items()},
                {f".{name}": amax for name, amax in before.items()},
            )
            with comparison.watching(block):
                block(states)
            a, b = (seen.operands[name] for name in wrap.quantizers)
            expected = result(block, a, b)
            if before:
                a = QUANTIZER.quantized(a, torch.tensor(chosen))
                others = [(a, QUANTIZER.quantized(b, torch.tensor(amax))) for amax in RANGES]
            else:
                others = [(QUANTIZER.quantized(a, torch.tensor(amax)), b) for amax in RANGES]
            by_hand = [error(result(block, *pair), expected, power) for pair in others]
            ((_, errors),) = comparison.errors.items()
            assert errors.tolist() == pytest.approx(by_hand, rel=1e-12)
            assert by_hand[0] > by_hand[-1] > 0
    assert seen.runs == 2, "once in each pass over the model"
    assert not any(block.get_submodule(name)._if_quant for name in wrap.quantizers)
    assert len(block.get_submodule(first)._forward_hooks) == 1, "only the test's own"
