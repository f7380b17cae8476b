"""Blocks with a residual add, written in every way that models write one."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


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


class Branching(Block):
    """Has the add in one of two branches."""

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.dense(hidden) + residual if self.dense.bias.dim() else residual


class EitherWay(Block):
    """Has it in both."""

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        hidden = self.dense(hidden)
        if hidden.dim() > 1:
            return hidden + residual
        hidden += residual
        return hidden


class FunctionalDropout(Block):
    """Asks for its mode."""

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return nn.functional.dropout(self.dense(hidden), 0.0, self.training) + residual


class OptionalInput(Block):
    """Has an argument that callers leave out."""

    def forward(self, hidden: Tensor, residual: Tensor, scale: Tensor | None = None) -> Tensor:
        local = self.dense(hidden)
        if scale is not None:
            local = local * scale
        return local + residual


class OwnConstant(Block):
    """Makes a tensor while it runs."""

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.dense(hidden) * torch.tensor(1.0) + residual


class Inheriting(Block):
    """Calls what it inherits, and has a private name."""

    def __dense(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden, torch.zeros(()))

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.__dense(hidden + len(super().extra_repr())) + residual


def unchanged(forward: Any) -> Any:
    @functools.wraps(forward)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return wrapper


class Decorated(Block):
    @unchanged
    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.dense(hidden) + residual


def closed_over(times: int) -> type[Block]:
    class Closure(Block):
        """Refers to a variable of the function that it was made in."""

        def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
            return self.dense(hidden) * times + residual

    return Closure


class Checkpointing(GradientCheckpointingLayer):
    """A layer of transformers, whose `forward` a wrapper hides."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 4)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.dense(hidden) + residual


BLOCKS = [
    Block,
    Swapped,
    InPlace,
    Method,
    MethodInPlace,
    Function,
    Keyword,
    OwnParameter,
    OneInput,
    Branching,
    EitherWay,
    FunctionalDropout,
    OptionalInput,
    OwnConstant,
    Inheriting,
    Decorated,
    closed_over(1),
    Checkpointing,
]
