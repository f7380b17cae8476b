"""Rules for a model type that has none of its own, found by looking at the model; no model's name is here.

Layers are the members of an `nn.ModuleList` that hold a Linear. Inside them an attention is a class that asks
transformers for the attention function, or whose `forward` has a softmax between two matrix products; and a
block is any class whose `forward` adds what it computed to what it was given.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from qdqpatch.rules.adds import ResidualAdds, adds_of
from qdqpatch.rules.base import Match, Miss, Rule
from qdqpatch.rules.linears import Linears, modules_inside
from qdqpatch.rules.matmuls import AttentionMatmuls, calls_interface, products_of
from qdqpatch.rules.products import CALLS
from qdqpatch.rules.source import SourceError


def structural_rules(model: PreTrainedModel) -> tuple[Rule, ...]:
    """Return the rules that fit what the model is made of."""
    layers = layer_classes(model)
    inside: dict[type[nn.Module], bool] = {}
    for layer in model.modules():
        if isinstance(layer, layers):
            for module in layer.modules():
                if not type(module).__module__.startswith("torch."):
                    inside[type(module)] = next(module.children(), None) is not None
    multiplying = tuple(cls for cls in inside if _products(cls) > 0)
    attention = tuple(
        cls for cls in inside if calls_interface(cls) or (cls in multiplying and _has_softmax(cls))
    )
    rules: list[Rule] = [Linears(layers), Unreached(member_classes(model), attention)]
    if attention:
        rules.append(AttentionMatmuls(attention))
    counted: dict[int, list[type[nn.Module]]] = {}
    for cls, has_children in inside.items():
        if has_children and cls not in multiplying:  # what that adds to scores is no residual
            counted.setdefault(_adds(cls), []).append(cls)
    rules += [ResidualAdds(tuple(classes), count) for count, classes in counted.items() if count]
    return (*rules, Linears((PreTrainedModel,), part="head"))


def layer_classes(model: nn.Module) -> tuple[type[nn.Module], ...]:
    """Return the classes of the model's layers."""
    return tuple(
        cls
        for cls in member_classes(model)
        if any(
            isinstance(part, nn.Linear)
            for module in model.modules()
            if type(module) is cls
            for part in module.modules()
        )
    )


def member_classes(model: nn.Module) -> tuple[type[nn.Module], ...]:
    """Return the classes of what stands in a list of modules."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    kinds = dict.fromkeys(type(member) for members in lists for member in members)
    return tuple(cls for cls in kinds if not issubclass(cls, (nn.ModuleList, nn.Linear)))


@dataclass(frozen=True)
class Unreached:
    """What layers compute with weights or products that no rule quantizes is said to stay float.

    Attributes:
        inside: Classes whose instances are searched, themselves included.
        attention: Classes whose products another rule knows.
        part: The field of `QDQConfig` that would turn this on.
    """

    inside: tuple[type[nn.Module], ...]
    attention: tuple[type[nn.Module], ...] = ()
    part: str = "linears"

    def match(self, model: nn.Module) -> Iterator[Match | Miss]:
        """Yield misses only."""
        for path, module in modules_inside(model, self.inside):
            kind = type(module)
            own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            if kind not in self.attention and multiplies(kind):
                yield Miss(
                    path, "matrix product", f"no rule knows the products in the methods of {kind.__name__}"
                )
            elif any(tensor.dim() > 1 for tensor in own) and not isinstance(
                module, (nn.Linear, nn.Embedding)
            ):
                yield Miss(
                    path, kind.__name__, "only the weights of nn.Linear and nn.Embedding are quantized"
                )
        for path, module in model.named_modules():
            lists = [child for child in module.children() if isinstance(child, nn.ModuleList)]
            if lists and not isinstance(module, self.inside) and _adds(type(module)):
                yield Miss(path, "residual add", f"{type(module).__name__} adds in the loop over its layers")


def multiplies(cls: type[nn.Module]) -> bool:
    """Whether a method of a class itself, or a function beside it that it calls, has a matrix product."""
    return not cls.__module__.startswith("torch.") and any(
        not {*CALLS, "einsum", "baddbmm"}.isdisjoint(code.co_names) for code in _codes(cls)
    )


def _codes(cls: type[nn.Module]) -> Iterator[types.CodeType]:
    """Yield the code of a class's own methods, and of functions of its file that they name."""
    for method in vars(cls).values():
        function = inspect.unwrap(method) if callable(method) else None
        if isinstance(function, types.FunctionType):
            yield function.__code__
            for other in functions_of(function):
                yield other.__code__


def functions_of(function: types.FunctionType) -> Iterator[types.FunctionType]:
    """Yield the functions of a function's own file that it names."""
    for name in function.__code__.co_names:
        found = function.__globals__.get(name)
        if isinstance(found, types.FunctionType) and found.__module__ == function.__module__:
            yield found


def _adds(cls: type[nn.Module]) -> int:
    try:
        return adds_of(cls)
    except SourceError:
        return 0


def _products(cls: type[nn.Module]) -> int:
    try:
        return products_of(cls, "forward")
    except SourceError:
        return 0


def _has_softmax(cls: type[nn.Module]) -> bool:
    code = getattr(inspect.unwrap(cls.forward), "__code__", None)
    return code is not None and "softmax" in code.co_names
