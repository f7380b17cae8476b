"""Say what stays float in a model that its structure alone describes; no model's name is here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

from qdqpatch.rules.adds import adds_of
from qdqpatch.rules.base import Match, Miss
from qdqpatch.rules.linears import modules_inside
from qdqpatch.rules.matmuls import calls_interface, products_of
from qdqpatch.rules.products import CALLS
from qdqpatch.rules.reading import (
    AT_ONCE,
    WEIGHED_CALLS,
    Part,
    multiplies,
    not_called,
    parts_of,
    uses,
    why_unread,
)
from qdqpatch.rules.source import SourceError
from qdqpatch.rules.values import PRODUCT, PRODUCT_CALLS, Add

MATRIX_PRODUCT = "matrix product"
FURTHER = "further matrix product"
"""In an attention of which a rule knows two."""


@dataclass(frozen=True)
class Uncalled:
    """Linears that layers have and do not call on what they are given stay float.

    Attributes:
        inside: Classes whose instances are searched, themselves included.
        part: The field of `QDQConfig` that would turn this on.
    """

    inside: tuple[type[nn.Module], ...]
    part: str = "linears"

    def match(self, model: nn.Module) -> Iterator[Match | Miss]:
        """Yield misses only."""
        for path, module in modules_inside(model, self.inside):
            for name, reason in not_called(type(module)).items():
                for child in _children(frozenset({name}), module):
                    for below, linear in child.named_modules(prefix=f"{path}.{name}"):
                        if type(linear) is nn.Linear:
                            yield Miss(below, "linear", reason)


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
            if isinstance(module, _ConvNd):
                yield Miss(path, "convolution", "convolutions are not quantized")
            elif kind in self.attention:
                if _has_further_products(kind):
                    yield Miss(path, FURTHER, f"{kind.__name__} has more products than a rule knows")
            elif multiplies(kind):
                yield Miss(path, MATRIX_PRODUCT, _reason(kind))
            elif (
                any(tensor.dim() > 1 for tensor in own)
                and not isinstance(module, (nn.Linear, nn.Embedding))
                and _multiplies_weights(kind)
            ):
                yield Miss(
                    path, kind.__name__, "only the weights of nn.Linear and nn.Embedding are quantized"
                )


@dataclass(frozen=True)
class FloatAdds:
    """Residual adds that no rule quantizes are said to stay float: those outside the blocks' `forward`.

    Attributes:
        blocks: Classes whose `forward` another rule knows.
        part: The field of `QDQConfig` that would turn this on.
    """

    blocks: tuple[type[nn.Module], ...]
    part: str = "residual_adds"

    def match(self, model: nn.Module) -> Iterator[Match | Miss]:
        """Yield misses only."""
        for path, module in model.named_modules():
            kind = type(module)
            if kind.__module__.startswith("torch.") or isinstance(module, nn.Embedding):
                continue
            reason = why_unread(module)
            if reason and kind not in self.blocks and _is_multiplied(frozenset(module._modules), module):
                yield Miss(path, "residual add", reason)
            for part in parts_of(kind)[kind in self.blocks :]:
                adds = [add for add in part.adds if _is_residual(add, part, module)]
                if adds:
                    where = f"{kind.__name__}.{part.name}" if part.is_method else part.name
                    how = " in a loop" if any(add.in_loop for add in adds) else ""
                    operation = "residual add" if part.name == "forward" else f"residual add of {part.name}"
                    yield Miss(path, operation, f"no rule knows the add of {where}{how}")


def _is_residual(add: Add, part: Part, module: nn.Module) -> bool:
    """Whether something is multiplied between the operands."""
    if part.name != "forward" and not add.is_derived and _is_multiplied(part.between, module):
        return True  # it adds what it was given
    if not part.is_method:
        return False
    from_outside = part.name == "forward" and not add.is_derived and not _children(add.through, module)
    return from_outside or _is_multiplied(add.through, module)


def _is_multiplied(through: frozenset[str], module: nn.Module) -> bool:
    """Whether there is a product on a way through children of a module.

    A child that has layers of its own gives outputs, which are no tensors.
    """
    return PRODUCT in through or any(
        isinstance(below, (nn.Linear, _ConvNd)) or multiplies(type(below))
        for child in _children(through, module)
        if not any(isinstance(below, nn.ModuleList) for below in child.children())
        for below in child.modules()
    )


def _children(names: frozenset[str], module: nn.Module) -> list[nn.Module]:
    children = module._modules  # a property may raise whatever it likes
    return [child for name in names if (child := children.get(name)) is not None]


def _reason(kind: type) -> str:
    if uses(kind, AT_ONCE):
        return (
            f"{kind.__name__} computes attention in one call; models that have it in another form load it "
            "with attn_implementation='eager'"
        )
    return f"no rule knows the products in the methods of {kind.__name__}"


def _has_further_products(kind: type) -> bool:
    """Whether an attention has products beside those that `AttentionMatmuls` wraps."""
    through_interface = calls_interface(kind)
    for part in parts_of(kind):
        if through_interface and not part.is_called:  # transformers may call it for attention
            continue
        is_forward = part.name == "forward" and not through_interface
        if is_forward and not part.names.isdisjoint({*PRODUCT_CALLS} - {*CALLS}):
            return True
        if not is_forward and part.multiplies:
            return True
    return False


def _multiplies_weights(kind: type) -> bool:
    return kind.__module__.startswith("torch.") or uses(kind, WEIGHED_CALLS)


def adds_in(cls: type[nn.Module]) -> int:
    """Return how many residual adds the `forward` of a class has; 0 where it cannot be read."""
    try:
        return adds_of(cls)
    except SourceError:
        return 0


def products_in(cls: type[nn.Module]) -> int:
    """Return how many products the `forward` of a class has; 0 where it cannot be read."""
    try:
        return products_of(cls, "forward")
    except SourceError:
        return 0
