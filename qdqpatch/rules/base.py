"""What a rule is: a pure look at a model that says which modules could carry quantizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import nn

Operand = Literal["activation", "weight"]
"""What a quantizer sees, and so which settings of the `QDQConfig` it takes."""


@dataclass(frozen=True)
class Match:
    """A module that a rule can rewrite.

    Attributes:
        path: The module's name in the model.
        operation: What is computed there: `linear`, `query x key`, `residual add`, ...
        quantizers: Names of the child quantizers to add, with what each one sees.
        becomes: The class that the module gets, its own where that need not change. Where several rules
            change one module, it gets the class that has the changes of all.
    """

    path: str
    operation: str
    quantizers: Mapping[str, Operand]
    becomes: type[nn.Module]


@dataclass(frozen=True)
class Miss:
    """An operation that stays float.

    Attributes:
        path: The module's name in the model.
        operation: What is computed there.
        reason: Why it stays float, as a sentence without its full stop.
        wanted: Whether the configuration asks for it to be quantized, so that it stays float although
            nobody chose so.
    """

    path: str
    operation: str
    reason: str
    wanted: bool = False


class Rule(Protocol):
    """One small rewrite: where it applies, and what a module there becomes."""

    @property
    def part(self) -> str:
        """The field of `QDQConfig` that turns the rule on."""

    def match(self, model: nn.Module) -> Iterator[Match | Miss]:
        """Yield every place that is the rule's business, rewritable or not; change nothing."""
