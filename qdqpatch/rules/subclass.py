"""Subclasses made while running, whose instances can be copied and pickled all the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import nn

Rebuild = Callable[[nn.Module], type[nn.Module]]
"""Makes the subclass of a float module; must be a module-level function, for pickle to find it."""

_MADE: dict[Hashable, type[nn.Module]] = {}
"""The subclass made for each float class and key: one for all the modules of a kind."""


def subclass(
    float_class: type[nn.Module], key: Hashable, forward: Callable[..., Any], rebuild: Rebuild
) -> type[nn.Module]:
    """Return the subclass of `float_class` with another `forward`, made once for each key.

    Args:
        float_class: The class whose instances will change to the subclass; kept as its `float_class`.
        key: What besides the float class tells one `forward` from another.
        forward: The method.
        rebuild: Makes the same subclass from a float instance. Instances are pickled by way of their
            float class, because the subclass has no name that could be imported.
    """
    found = _MADE.get((float_class, key))
    if found is None:
        namespace = {
            "__doc__": f"{float_class.__name__} with quantizers.",
            "__module__": float_class.__module__,
            "__reduce_ex__": lambda self, _: (_restore, (rebuild, float_class, self.__dict__)),
            "float_class": float_class,
            "forward": forward,
        }
        found = _MADE[float_class, key] = type(f"QDQ{float_class.__name__}", (float_class,), namespace)
    return found


def _restore(rebuild: Rebuild, float_class: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    module = float_class.__new__(float_class)
    module.__setstate__(state)
    module.__class__ = rebuild(module)
    return module
