"""Put quantizers on the operands of attention's two matrix multiplications."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from qdqpatch.errors import QuantizedError
from qdqpatch.nn.attention import IMPLEMENTATION
from qdqpatch.nn.names import MATMUL
from qdqpatch.rules.base import Match, Miss
from qdqpatch.rules.subclass import subclass


@dataclass(frozen=True)
class AttentionMatmuls:
    """Modules that call transformers' attention interface get quantizers for `attention.py` to use.

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
                for operation, operands in (("query x key", "qk"), ("probabilities x value", "av")):
                    names = [MATMUL[operand] for operand in operands]
                    yield Match(path, operation, dict.fromkeys(names, "activation"), guarded_class(module))


def guarded_class(module: nn.Module) -> type[nn.Module]:
    """Return a subclass of the float module's class that refuses to compute without its quantizers.

    They are used by our attention implementation alone, which `model.set_attn_implementation` can
    exchange at any time; the operands would then silently stay float.
    """
    float_class = type(module)

    @functools.wraps(float_class.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        implementation = getattr(self.config, "_attn_implementation", None)
        if implementation != IMPLEMENTATION:
            raise QuantizedError(
                f"The model's attention implementation is {implementation!r}, which does not quantize the "
                f"matmuls of {float_class.__name__}. Call model.set_attn_implementation({IMPLEMENTATION!r}), "
                "or quantize with QDQConfig(matmuls=False)."
            )
        return float_class.forward(self, *args, **kwargs)

    return subclass(float_class, "guarded", forward, guarded_class)
