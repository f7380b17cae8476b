"""Quantize both operands of the residual adds that a block's own `forward` computes.

The block's source says where its adds are (`flow.py`), and each operand is named by its role: `residual` is
what was there before, `local` is what was computed from it. A block with one add has QDQBERT's names,
`add_local_input_quantizer` and `add_residual_input_quantizer`; one with several numbers them in the order in
which they run: `add1_local_input_quantizer`, `add2_local_input_quantizer`, ...
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from qdqpatch.nn.names import LOCAL, RESIDUAL
from qdqpatch.rules.base import Match, Miss
from qdqpatch.rules.branches import turned_off
from qdqpatch.rules.flow import residual_adds
from qdqpatch.rules.rewriting import Wrap, rewritten
from qdqpatch.rules.source import Method, SourceError
from qdqpatch.rules.values import Add
from qdqpatch.spelling import counted

_FOUND: dict[tuple[type[nn.Module], str], tuple[ast.FunctionDef, list[Add]]] = {}


@dataclass(frozen=True)
class ResidualAdds:
    """Blocks that add their input to what they computed get a quantizer on each operand.

    Attributes:
        inside: The block classes, such as `BertSelfOutput`.
        count: How many adds the method of each of them has. A block with another number stays float: it
            is not what the rule was written for.
        method: The method that has them. Those of another one than `forward` are numbered on from its.
        part: The field of `QDQConfig` that turns this on.
    """

    inside: tuple[type[nn.Module], ...]
    count: int = 1
    method: str = "forward"
    part: str = "residual_adds"

    def match(self, model: nn.Module) -> Iterator[Match | Miss]:
        """Yield a `Match` for each add of a block, or a `Miss` with the reason for the block.

        Adds in a branch that the block's own settings turn off are left out.
        """
        for path, block in model.named_modules():
            if not isinstance(block, self.inside):
                continue
            try:
                first = 1 if self.method == "forward" else adds_of(type(block)) + 1
                becomes = quantized_classes(type(block), self.count, self.method, first)
            except SourceError as error:
                yield Miss(path, "residual add", str(error))
                continue
            last = first + self.count - 1
            running = _running(block, self.method)
            for number, (names, cls) in enumerate(
                zip(add_names(last)[first - 1 :], becomes, strict=True), first
            ):
                if number - first + 1 not in running:
                    continue
                operation = "residual add" if last == 1 else f"residual add {number}"
                yield Match(path, operation, dict.fromkeys(names, "activation"), cls)


def add_names(count: int) -> list[tuple[str, str]]:
    """Return the names of the quantizers of a block's adds: the computed operand's, and the residual's."""
    if count == 1:
        return [(LOCAL, RESIDUAL)]
    return [
        (LOCAL.replace("add", f"add{number}", 1), RESIDUAL.replace("add", f"add{number}", 1))
        for number in range(1, count + 1)
    ]


def quantized_classes(
    float_class: type[nn.Module], count: int = 1, method: str = "forward", first: int = 1
) -> list[type[nn.Module]]:
    """Return, for each residual add of a block's class, the subclass that quantizes that add.

    Args:
        float_class: The class.
        count: How many adds the method has.
        method: The method.
        first: The number of the first one.

    Raises:
        SourceError: If the source of the method cannot be read, or has another number of adds.
    """
    found = adds_of(float_class, method)
    if found != count:
        raise SourceError(
            f"its {method} has {counted(found, 'add')} of the block's input to a computed tensor, and the "
            f"rule needs {'exactly one' if count == 1 else count}"
        )
    return [
        rewritten(float_class, [Wrap(method, "residual add", number, names)])
        for number, names in enumerate(add_names(first + count - 1)[first - 1 :], 1)
    ]


def adds_of(float_class: type[nn.Module], method: str = "forward") -> int:
    """Return how many residual adds a method of a class has; of two branches, the longer counts.

    Raises:
        SourceError: If its source cannot be read.
    """
    return max((add.number for add in _found(float_class, method)[1]), default=0)


def _running(block: nn.Module, method: str) -> set[int]:
    """Return the numbers of those adds that a block's settings do not turn off."""
    function, adds = _found(type(block), method)
    off = turned_off(function, block)
    return {add.number for add in adds if add.node not in off}


def _found(float_class: type[nn.Module], method: str) -> tuple[ast.FunctionDef, list[Add]]:
    if (float_class, method) not in _FOUND:
        tree = Method(float_class, method).tree
        _FOUND[float_class, method] = tree, residual_adds(tree)
    return _FOUND[float_class, method]
