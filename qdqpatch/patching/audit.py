"""Prove that nothing was missed: trace a model, and list the operands that no quantizer fed."""

from __future__ import annotations

import copy
import re
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch.errors import ConfigError, UnsupportedModelError, one_line
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.arguments import check_arguments
from qdqpatch.patching.folding import Row, fold
from qdqpatch.patching.operations import Operation, operations_of
from qdqpatch.patching.quiet import quiet_export
from qdqpatch.patching.wrapped import refusal, unwrapped
from qdqpatch.spelling import counted

WIDTH = 80
_LAYER = re.compile(r"(?<![^. ])\d+(?![^. ])")


@dataclass(frozen=True)
class Audit:
    """Every product and residual add that a model computes from its inputs, and what feeds the operands.

    Attributes:
        model: Name of the model's class.
        operations: In the order in which they run.
    """

    model: str
    operations: tuple[Operation, ...]

    @property
    def misses(self) -> tuple[Operation, ...]:
        """The operations with an operand that no quantizer fed."""
        return tuple(operation for operation in self.operations if operation.floats)

    def title(self) -> str:
        """Return the result in one line."""
        return (
            f"{self.model}: {counted(len(self.operations), 'operation')} on the path, {len(self.misses)} "
            "of them with float operands"
        )

    def rows(self) -> list[Row]:
        """Return path, operation and float operands of the misses, equal ones of all layers in one row.

        In what feeds an operand, `#` stands for the number of a layer.
        """
        return fold(
            (
                operation.path or "the model itself",
                operation.kind,
                ", ".join(
                    f"{operand.name} ({_LAYER.sub('#', operand.source)})" for operand in operation.floats
                ),
            )
            for operation in self.misses
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as JSON-ready data."""
        return asdict(self)

    def __repr__(self) -> str:
        lines = [self.title()]
        for path, kind, operands in self.rows():
            lines += ["", *textwrap.wrap(f"{path}: {kind}", WIDTH, break_long_words=False)]
            lines += textwrap.wrap(
                operands, WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False
            )
        return "\n".join(lines)


def audit(model: PreTrainedModel, batch: Mapping[str, Any]) -> Audit:
    """Trace a model and list the products and residual adds whose operands no quantizer fed.

    Where a plan says what the rules found, this says what the model computes: every linear, matmul, bmm,
    einsum, scaled_dot_product_attention, convolution and residual add between its inputs and its outputs. The
    model is only read: a copy that shares its tensors is traced by `torch.export`, in eval mode.

    Args:
        model: A model, quantized or not, in any mode and on any device; or a `SentenceTransformer` or
            `CrossEncoder` with one inside.
        batch: Keyword arguments for its `forward`, as a tokenizer gives them; what is no tensor is left out.

    Returns:
        The audit; printed, it is a table of 80 columns.

    Raises:
        UnsupportedModelError: If it is no transformers model, or cannot be traced with this batch.
        ConfigError: If the batch holds no tensor.
        DataError: If the model does not take what it holds.

    Examples:
        >>> batch = {"input_ids": torch.tensor([[2, 6, 8, 3]])}
        >>> any(miss.path.startswith("bert.") for miss in audit(model, batch).misses)
        False
    """
    model = unwrapped(model)
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(refusal(model))
    if not isinstance(batch, Mapping):
        raise ConfigError(
            "A batch is a mapping from names to tensors, as a tokenizer gives it, not a "
            f"{type(batch).__name__}."
        )
    inputs = {name: value.to(model.device) for name, value in batch.items() if isinstance(value, Tensor)}
    if not inputs:
        raise ConfigError("The batch holds no tensor. Tokenizers give some with return_tensors='pt'.")
    check_arguments(model, inputs)
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    traced = _Tensors(copy.deepcopy(model, shared).eval())
    for module in traced.modules():
        if isinstance(module, TensorQuantizer):
            module.__class__ = _Mark
    quantizers = [
        path
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, TensorQuantizer)
    ]
    with torch.no_grad(), quiet_export():
        try:
            program = torch.export.export(traced, (inputs,), strict=False)
        except Exception as error:  # whatever a model's own code raises
            raise UnsupportedModelError(
                f"{type(model).__name__} cannot be traced with {', '.join(inputs)}: {one_line(error)}. See "
                "whether model(**batch) runs; a model that branches on its values cannot be audited."
            ) from error
    return Audit(type(model).__name__, tuple(operations_of(program, quantizers, "model")))


class _Mark(TensorQuantizer):
    """Stands in for a quantizer: a single node in the trace, which is most of the time that tracing takes."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.clone() if self.is_enabled else inputs


class _Tensors(nn.Module):
    """A model whose inputs are one dict and whose outputs are tensors alone."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        found = self.model(**inputs)
        values = found.values() if isinstance(found, Mapping) else found
        return [value for value in values if isinstance(value, Tensor)]
