"""Put quantizers on the operands of attention's two matrix multiplications."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from qdqpatch.rules.base import Match, Miss


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
                    names = [f"matmul_{operand}_input_quantizer" for operand in operands]
                    yield Match(path, operation, dict.fromkeys(names, "activation"), type(module))
