"""The type of what stays float in an exported file: fp32, fp16 or bf16."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch.engines.tensorrt.half import cast_floats
from qdqpatch.errors import ExportError
from qdqpatch.exporter.check import JITTER
from qdqpatch.exporter.wide import kept_wide, multiply_outer_products
from qdqpatch.spelling import spelled


@dataclass(frozen=True)
class Precision:
    """A float type of a file.

    Attributes:
        name: As `export(dtype=...)` takes it.
        onnx: ONNX's type.
        largest: Its largest number.
        rounding: Half the distance of neighbouring numbers, relative to them; for fp32 what another order of
            adding changes, which is more.
        is_run: Whether ONNX Runtime's CPU can run it, so that the file itself can be compared.
    """

    name: str
    onnx: ir.DataType
    largest: float
    rounding: float
    is_run: bool = True


PRECISIONS = {
    "float32": Precision("float32", ir.DataType.FLOAT, float(torch.finfo(torch.float32).max), JITTER),
    "float16": Precision("float16", ir.DataType.FLOAT16, 65504.0, 2.0**-11),
    "bfloat16": Precision(
        "bfloat16", ir.DataType.BFLOAT16, float(torch.finfo(torch.bfloat16).max), 2.0**-8, False
    ),
}

OPSET = 20
"""The first with everything that a file in 16 bits needs: Q/DQ of fp16 is opset 19, Gelu opset 20. TensorRT
reads it from 10.0 on, and TensorRT for RTX."""


def lower(graph: ir.Model, precision: Precision) -> None:
    """Change what is float in a graph to a type, in place, but for what that would ruin (`wide.py`)."""
    multiply_outer_products(graph.graph)
    if precision.onnx != ir.DataType.FLOAT:
        with kept_wide(graph.graph):
            cast_floats(graph, precision.onnx)


def convert_ends(graph: ir.Model, int32_inputs: bool, float32_outputs: bool) -> None:
    """Give a graph inputs of int32, or outputs of fp32, by a Cast at each end, in place."""
    inner = graph.graph
    if int32_inputs:
        for value in [value for value in inner.inputs if value.dtype == ir.DataType.INT64]:
            cast = ir.node("Cast", [value], {"to": ir.DataType.INT64})
            readers = [usage for usage in value.uses() if usage.node is not cast]
            cast.outputs[0].type, cast.outputs[0].shape = value.type, value.shape
            for usage in readers:
                usage.node.replace_input_with(usage.idx, cast.outputs[0])
            value.type = ir.TensorType(ir.DataType.INT32)
            inner.insert_before(inner[0], cast)
    if float32_outputs:
        for index, value in enumerate(inner.outputs):
            if value.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
                continue
            name = value.name
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
            value.name = f"{name}_half"
            cast.outputs[0].name = name
            cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
            inner.append(cast)
            inner.outputs[index] = cast.outputs[0]


def check_fits(model: PreTrainedModel, batches: Iterable[dict[str, Tensor]], precision: Precision) -> None:
    """Run a model and find out whether all that its modules compute is within a type.

    Raises:
        ExportError: If a weight or an activation is not; the message names the module.
    """
    for path, parameter in model.named_parameters():
        _require_fits(path, parameter, precision)
    with ExitStack() as stack, torch.inference_mode():
        for path, module in model.named_modules():
            hook = partial(_look_at, path, precision)
            stack.callback(module.register_forward_hook(hook).remove)
        for batch in batches:
            model(**batch)


def _look_at(path: str, precision: Precision, module: nn.Module, inputs: Any, output: Any) -> None:
    if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
        _require_fits(path, output, precision)


def _require_fits(path: str, values: Tensor, precision: Precision) -> None:
    largest = float(values.detach().abs().max()) if values.numel() else 0.0
    if largest > precision.largest:
        wider = spelled('dtype="bfloat16"', "--dtype bfloat16")
        raise ExportError(
            f"{path} reaches {largest:.0f}, and {precision.name} ends at {precision.largest:.0f}. "
            f"Export with {wider}, or float32. Nothing was written."
        )
