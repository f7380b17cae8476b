"""Quantize both operands of the residual adds that a block's own `forward` computes.

The block's source says where its adds are (`flow.py`), and each operand is named by its role: `residual` is
what was there before, `local` is what was computed from it. A block with one add has QDQBERT's names,
`add_local_input_quantizer` and `add_residual_input_quantizer`; one with several numbers them in the order in
which they run: `add1_local_input_quantizer`, `add2_local_input_quantizer`, ...
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from qdqpatch.nn.names import LOCAL, RESIDUAL
from qdqpatch.rules.base import Match, Miss
from qdqpatch.rules.flow import residual_adds
from qdqpatch.rules.rewriting import Wrap, rewritten
from qdqpatch.rules.source import Method, SourceError

_COUNTED: dict[type[nn.Module], int] = {}


@dataclass(frozen=True)
class ResidualAdds:
    """Blocks that add their input to what they computed get a quantizer on each operand.

    Attributes:
        inside: The block classes, such as `BertSelfOutput`.
        count: How many adds the `forward` of each of them has. A block with another number stays float: it
            is not what the rule was written for.
        part: The field of `QDQConfig` that turns this on.
    """

    inside: tuple[type[nn.Module], ...]
    count: int = 1
    part: str = "residual_adds"

    def match(self, model: nn.Module) -> Iterator[Match | Miss]:
        """Yield a `Match` for each add of a block, or a `Miss` with the reason for the block."""
        for path, block in model.named_modules():
            if not isinstance(block, self.inside):
                continue
            try:
                becomes = quantized_classes(type(block), self.count)
            except SourceError as error:
                yield Miss(path, "residual add", str(error))
                continue
            for number, (names, cls) in enumerate(zip(add_names(self.count), becomes, strict=True), 1):
                operation = "residual add" if self.count == 1 else f"residual add {number}"
                yield Match(path, operation, dict.fromkeys(names, "activation"), cls)


def add_names(count: int) -> list[tuple[str, str]]:
    """Return the names of the quantizers of a block's adds: the computed operand's, and the residual's."""
    if count == 1:
        return [(LOCAL, RESIDUAL)]
    return [
        (LOCAL.replace("add", f"add{number}", 1), RESIDUAL.replace("add", f"add{number}", 1))
        for number in range(1, count + 1)
    ]


def quantized_classes(float_class: type[nn.Module], count: int = 1) -> list[type[nn.Module]]:
    """Return, for each residual add of a block's class, the subclass that quantizes that add.

    Raises:
        SourceError: If the source of its `forward` cannot be read, or has another number of adds.
    """
    found = adds_of(float_class)
    if found != count:
        adds = "add" if found == 1 else "adds"
        raise SourceError(
            f"its forward has {found} {adds} of the block's input to a computed tensor, and the rule needs "
            f"{'exactly one' if count == 1 else count}"
        )
    return [
        rewritten(float_class, [Wrap("forward", "residual add", number, names)])
        for number, names in enumerate(add_names(count), 1)
    ]


def adds_of(float_class: type[nn.Module]) -> int:
    """Return how many residual adds the `forward` of a class has; of two branches, the longer counts.

    Raises:
        SourceError: If its source cannot be read.
    """
    if float_class not in _COUNTED:
        adds = residual_adds(Method(float_class, "forward").tree)
        _COUNTED[float_class] = max((add.number for add in adds), default=0)
    return _COUNTED[float_class]
