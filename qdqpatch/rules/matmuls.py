"""Put quantizers on the operands of attention's matrix products.

An attention that asks transformers for the function is reached through `nn/attention.py`, which looks for
the quantizers on the module. One that computes its products itself has them wrapped in its own methods, one
quantizer for each use of an operand.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from qdqpatch.nn.names import operand
from qdqpatch.rules.base import Match, Miss, Operand
from qdqpatch.rules.products import products
from qdqpatch.rules.rewriting import GUARD, Change, Wrap, rewritten
from qdqpatch.rules.source import Method, SourceError
from qdqpatch.spelling import counted

INTERFACE = "ALL_ATTENTION_FUNCTIONS"

Products = tuple[tuple[str, str] | None, ...]
"""What the two operands of each product of a method are called, top down; None for one that stays float."""

STANDARD: tuple[tuple[str, Products], ...] = (("forward", (("q", "k"), ("a", "v"))),)
OPERATIONS = {
    ("q", "k"): "query x key",
    ("a", "v"): "probabilities x value",
    ("c2p_q", "c2p_k"): "query x position key",
    ("p2c_k", "p2c_q"): "key x position query",
    ("layout_q", "layout_k"): "layout query x layout key",
    ("layout_a", "layout_v"): "layout probabilities x layout value",
    ("conv_span", "conv_kernel"): "span x kernel",
}

_COUNTED: dict[tuple[type[nn.Module], str], int] = {}


@dataclass(frozen=True)
class AttentionMatmuls:
    """Attention modules get a quantizer for each operand of their products.

    Attributes:
        inside: The attention classes.
        products: The products of the methods of a class that does not ask transformers for the function. A
            module with another number of them stays float: it is not what the rule was written for.
        part: The field of `QDQConfig` that turns this on.
    """

    inside: tuple[type[nn.Module], ...]
    products: tuple[tuple[str, Products], ...] = STANDARD
    part: str = "matmuls"

    def match(self, model: nn.Module) -> Iterator[Match | Miss]:
        """Yield a match for each product of an attention module, or a miss with the reason."""
        for path, module in model.named_modules():
            if isinstance(module, self.inside):
                cls = type(module)
                through_interface = calls_interface(cls)
                refusal = "" if through_interface else self._refusal(cls)
                for method, pairs in STANDARD if through_interface else self.products:
                    for number, pair in enumerate(pairs, 1):
                        if pair is None:
                            continue
                        if refusal:
                            yield Miss(path, OPERATIONS[pair], refusal)
                            continue
                        first, second = operand(pair[0]), operand(pair[1])
                        change: Change = GUARD
                        if not through_interface:
                            change = Wrap(method, "product", number, (first, second))
                        quantizers: dict[str, Operand] = dict.fromkeys((first, second), "activation")
                        yield Match(path, OPERATIONS[pair], quantizers, rewritten(cls, [change]))

    def _refusal(self, cls: type[nn.Module]) -> str:
        """Return why the products of a class are not those of the rule; empty if they are."""
        for method, pairs in self.products:
            try:
                found = products_of(cls, method)
            except SourceError as error:
                return str(error)
            if found != len(pairs):
                return (
                    f"{cls.__name__}.{method} does not call transformers' attention interface, and has "
                    f"{counted(found, 'matrix product')} where the rule needs {len(pairs)}"
                )
        return ""


def calls_interface(cls: type[nn.Module]) -> bool:
    """Whether the `forward` of a class asks transformers for the function, or calls one that does."""
    for owner in cls.__mro__:
        if "forward" in vars(owner):
            code = getattr(inspect.unwrap(vars(owner)["forward"]), "__code__", None)
            if code is None or INTERFACE in code.co_names:
                return code is not None
            if "super" not in code.co_names:
                return False
    return False


def products_of(cls: type[nn.Module], method: str) -> int:
    """Return how many matrix products a method has.

    Raises:
        SourceError: If its source cannot be read.
    """
    if (cls, method) not in _COUNTED:
        _COUNTED[cls, method] = len(products(Method(cls, method).tree))
    return _COUNTED[cls, method]
