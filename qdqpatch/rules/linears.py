"""Swap the Linears (and Embeddings) inside certain modules for quantized ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from qdqpatch.nn.linear import QuantEmbedding, QuantLinear
from qdqpatch.nn.names import INPUT, WEIGHT
from qdqpatch.rules.base import Match, Miss, Operand


@dataclass(frozen=True)
class Linears:
    """Every Linear inside modules of the given classes gets an input and a weight quantizer.

    Attributes:
        inside: Classes whose instances are searched, themselves included.
        part: The field of `QDQConfig` that turns this on.
    """

    inside: tuple[type[nn.Module], ...]
    part: str = "linears"

    def match(self, model: nn.Module) -> Iterator[Match | Miss]:
        """Yield a `Match` for each plain `nn.Linear`, a `Miss` for each subclass of it."""
        for path, module in modules_inside(model, self.inside):
            if type(module) is nn.Linear:
                quantizers: dict[str, Operand] = {
                    INPUT: "activation",
                    WEIGHT: "weight",
                }
                yield Match(path, "linear", quantizers, QuantLinear)
            elif isinstance(module, nn.Linear):
                yield Miss(path, "linear", not_plain(module, nn.Linear))


@dataclass(frozen=True)
class Embeddings:
    """Every Embedding inside modules of the given classes gets a weight quantizer.

    Attributes:
        inside: Classes whose instances are searched, themselves included.
        part: The field of `QDQConfig` that turns this on.
        besides: Classes whose instances are not searched.
    """

    inside: tuple[type[nn.Module], ...]
    part: str = "embeddings"
    besides: tuple[type[nn.Module], ...] = ()

    def match(self, model: nn.Module) -> Iterator[Match | Miss]:
        """Yield a `Match` for each plain `nn.Embedding`, a `Miss` for each subclass of it."""
        left_out = {path for path, _ in modules_inside(model, self.besides)}
        for path, module in modules_inside(model, self.inside):
            if path in left_out:
                continue
            if type(module) is nn.Embedding:
                yield Match(path, "embedding", {WEIGHT: "weight"}, QuantEmbedding)
            elif isinstance(module, nn.Embedding):
                yield Miss(path, "embedding", not_plain(module, nn.Embedding))


def modules_inside(model: nn.Module, classes: tuple[type[nn.Module], ...]) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of everything at or below an instance of one of the classes."""
    for outer_path, outer in model.named_modules():
        if isinstance(outer, classes):
            yield from outer.named_modules(prefix=outer_path)


def not_plain(module: nn.Module, expected: type[nn.Module]) -> str:
    """Return the reason why a subclass is left alone."""
    return (
        f"it is a {type(module).__name__}, and only a plain nn.{expected.__name__} is known to compute "
        "what its quantized form computes"
    )
