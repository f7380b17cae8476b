"""Classes of a user's own, written as no model of transformers is: nothing fails, what is left is named."""

import operator
from typing import Any

import pytest
import torch
from own_models import Layer, Own
from torch import Tensor, nn

import qdqpatch
from qdqpatch.patching.apply import named_quantizers

Forward = Any


class Raising(Layer):
    """Has a property that cannot be read, and asks it only where it can."""

    @property
    def gate(self) -> Any:
        raise KeyError("gate")

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if self.training and self.gate:
            states = self.key(states) + self.gate
        return states + self.dense(states)


def add(first: Tensor, second: Tensor) -> Tensor:
    return first + second


class ByFunction(Layer):
    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return add(self.dense(states), states)


class ByMethod(Layer):
    def finish(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.finish(states, self.dense(states))


class ByClassMethod(Layer):
    @classmethod
    def finish(cls, first: Tensor, second: Tensor) -> Tensor:
        return first + second

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.finish(states, self.dense(states))


class OfBase(Layer):
    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.key(super().forward(states))


def hidden(forward: Forward) -> Forward:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return wrapper


class Hidden(Layer):
    @hidden
    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return states + self.dense(states)


class Lambda(Layer):
    forward = lambda self, states, attention_mask=None: states + self.dense(states)  # noqa: E731


class OnInstance(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.forward = lambda states, attention_mask=None: self.key(states) + states  # type: ignore[method-assign]


NAMES: dict[str, Any] = {"Layer": Layer}
exec(
    "class Executed(Layer):\n    def forward(self, states, attention_mask=None):\n"
    "        return states + self.dense(states)\n",
    NAMES,
)


class ByOperator(Layer):
    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return operator.add(states, self.dense(states))


class Chosen(Layer):
    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        before = self.key(states) if attention_mask is None else states
        return (states if attention_mask is None else before) + self.dense(before)


class Matched(Layer):
    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        match states.ndim:
            case 2:
                return self.key(states)
            case _:
                return states + self.dense(states)


class AnyNumber(Layer):
    def forward(self, *given: Tensor | None) -> Tensor:
        states = given[0]
        return states + self.dense(states)


UNREAD = "and what it adds is not known"
FLOAT: list[tuple[type[nn.Module], str]] = [
    (ByFunction, "no rule knows the add of add"),
    (ByMethod, "no rule knows the add of ByMethod.finish"),
    (ByClassMethod, "no rule knows the add of ByClassMethod.finish"),
    (OfBase, "no rule knows the add of OfBase.forward"),
    (Hidden, "no rule knows the add of Hidden.forward"),
    (Lambda, f"Lambda.<lambda> is not a plain function, {UNREAD}"),
    (
        NAMES["Executed"],
        f"the source of Executed.forward cannot be read (could not get source code), {UNREAD}",
    ),
    (OnInstance, "its forward was replaced on the instance, as accelerate's hooks do; quantize before that"),
]
ADDED = [Raising, ByOperator, Chosen, Matched, AnyNumber]


@pytest.mark.parametrize(("layer", "reason"), FLOAT)
def test_adds_that_stay_float_are_named(layer: type[nn.Module], reason: str) -> None:
    misses = [miss for miss in qdqpatch.plan(Own(layer)).misses if miss.path == "layers.0"]
    assert [miss.reason for miss in misses if miss.operation.startswith("residual add")] == [reason]


@pytest.mark.parametrize("layer", ADDED)
def test_adds_are_found(layer: type[nn.Module]) -> None:
    sites = qdqpatch.plan(Own(layer)).sites
    assert sum("residual add" in site.operation and site.path == "layers.0" for site in sites) == 1


@pytest.mark.filterwarnings("ignore::qdqpatch.errors.QuantizationWarning")
@pytest.mark.parametrize("layer", [*ADDED, *(layer for layer, _ in FLOAT)])
def test_without_its_quantizers_a_model_is_what_it_was(layer: type[nn.Module]) -> None:
    model, states = Own(layer).eval(), torch.randn(2, 3, 4)
    expected = model(states)[0]
    for _, quantizer in named_quantizers(qdqpatch.quantize(model)):
        quantizer.disable()
    torch.testing.assert_close(model(states)[0], expected, rtol=0, atol=0)


def test_a_forward_that_is_no_function_is_named() -> None:
    class Called(Layer):
        forward = torch.add  # type: ignore[assignment]

    (reason,) = {miss.reason for miss in qdqpatch.plan(Own(Called)).misses if miss.path == "layers.0"}
    assert reason == f"the forward of Called is no function written in Python, {UNREAD}"
