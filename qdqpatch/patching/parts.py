"""The parts of a model that rules are for, by the names that their modules go by."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel

from qdqpatch.errors import UnsupportedModelError
from qdqpatch.patching.wrapped import refusal
from qdqpatch.rules import has_rules
from qdqpatch.rules.base import Miss
from qdqpatch.rules.reading import multiplies

UNCOVERED: tuple[tuple[type[nn.Module], str, str], ...] = (
    (nn.Linear, "linear", "it is outside the parts that there are rules for"),
    (_ConvNd, "convolution", "convolutions are not quantized"),
    (nn.MultiheadAttention, "attention", "nn.MultiheadAttention computes it in one call"),
)
"""What stays float, and why, where no rule says anything of it."""


class Aliases:
    """The names that a quantizer goes by: with and without the prefix that a head puts before the base.

    Args:
        root_path: Where in the whole model the part is; empty for the whole.
        root: The part.
    """

    def __init__(self, root_path: str, root: PreTrainedModel) -> None:
        self._root = f"{root_path}." if root_path else ""
        self._prefix = f"{root.base_model_prefix}."
        self._is_base = root.base_model is root

    def full(self, path: str) -> str:
        """Return a path in the part as one in the whole model."""
        return f"{self._root}{path}"

    def of(self, path: str) -> tuple[str, str]:
        """Return both names of a path in the part, the one in the whole model first."""
        other = self._prefix + path if self._is_base else path.removeprefix(self._prefix)
        return self.full(path), self._root + other


def known_models(model: nn.Module) -> list[tuple[str, PreTrainedModel]]:
    """Return the outermost models that rules are for: the model itself, or the parts of a composite one.

    Raises:
        UnsupportedModelError: If it is no model of transformers.
    """
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(refusal(model))
    parts = [(path, module) for path, module in model.named_modules() if isinstance(module, PreTrainedModel)]
    known = _outermost([(path, module) for path, module in parts if has_rules(module)])
    between = {
        id(part) for _, part in parts if any(module is root for module in part.modules() for _, root in known)
    }
    # Of a composite model, the parts without rules too; not what only holds parts that have some.
    return _outermost(
        [(path, module) for path, module in parts if has_rules(module) or id(module) not in between]
    )


def _outermost(models: list[tuple[str, PreTrainedModel]]) -> list[tuple[str, PreTrainedModel]]:
    found: list[tuple[str, PreTrainedModel]] = []
    for path, module in models:
        if not any(not outer or path.startswith(f"{outer}.") for outer, _ in found):
            found.append((path, module))
    return found


def uncovered(model: nn.Module, covered: set[str]) -> list[Miss]:
    """Name what multiplies and is no rule's business.

    Such are a composite model's Linears between its parts, and in embeddings and heads convolutions, torch's
    own attention, and products of tensors.
    """
    modules = list(model.named_modules())
    found = [
        Miss(path, operation, reason)
        for kind, operation, reason in UNCOVERED
        for path, module in modules
        if isinstance(module, kind) and path not in covered
    ]
    covered = covered | {miss.path for miss in found}
    return found + [
        Miss(path, "matrix product", f"no rule knows the products in the methods of {type(module).__name__}")
        for path, module in modules
        if path not in covered and multiplies(type(module))
    ]
