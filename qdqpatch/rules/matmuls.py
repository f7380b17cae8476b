"""Put quantizers on the operands of attention's two matrix multiplications."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from qdqpatch.nn.names import MATMUL
from qdqpatch.rules.base import Match, Miss
from qdqpatch.rules.rewriting import GUARD, rewritten

INTERFACE = "ALL_ATTENTION_FUNCTIONS"
OPERATIONS = (("query x key", "qk"), ("probabilities x value", "av"))


@dataclass(frozen=True)
class AttentionMatmuls:
    """Modules that call transformers' attention interface get quantizers for `nn/attention.py` to use.

    Attributes:
        inside: The attention classes; each calls the interface with itself as first argument.
        part: The field of `QDQConfig` that turns this on.
    """

    inside: tuple[type[nn.Module], ...]
    part: str = "matmuls"

    def match(self, model: nn.Module) -> Iterator[Match | Miss]:
        """Yield two matches for each attention module, one a matrix multiplication."""
        for path, module in model.named_modules():
            if isinstance(module, self.inside):
                kind = type(module)
                for operation, operands in OPERATIONS:
                    if calls_interface(kind):
                        names = [MATMUL[operand] for operand in operands]
                        becomes = rewritten(kind, [GUARD])
                        yield Match(path, operation, dict.fromkeys(names, "activation"), becomes)
                    else:
                        reason = f"{kind.__name__}.forward does not call transformers' attention interface"
                        yield Miss(path, operation, reason)


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
