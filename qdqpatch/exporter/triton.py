"""What Triton Inference Server asks for: a configuration, and the file in the folder of a version.

The keys are those of `ModelConfig` in model_config.proto of triton-inference-server/common.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from qdqpatch.errors import ExportError
from qdqpatch.exporter.layout import link

CONFIG, VERSION = "config.pbtxt", "1"

LARGEST_BATCH = 64
"""So many requests are put together; a text more hardly makes the next one cheaper."""

TYPES = {
    ir.DataType.FLOAT: "TYPE_FP32",
    ir.DataType.FLOAT16: "TYPE_FP16",
    ir.DataType.BFLOAT16: "TYPE_BF16",
    ir.DataType.INT32: "TYPE_INT32",
    ir.DataType.INT64: "TYPE_INT64",
}

HEADER = """\
# The folder that this file is in is a model: put it into a model repository of Triton Inference Server.
"""
BATCHING = """\
# Requests are put together if their texts have the same number of tokens: pad them to a few lengths.
dynamic_batching { }
"""


def write_triton(graph: ir.Graph, file: Path, folder: Path) -> None:
    """Make a folder a model of Triton's, by its configuration and a link to the file.

    Args:
        graph: What is in the file.
        file: The ONNX file, in the folder; what it keeps beside itself is linked too.
        folder: The folder.

    Raises:
        ExportError: If the graph does not say the shape or a type that Triton has of what it takes and gives.
    """
    text = config_text(graph)
    (folder / CONFIG).write_text(text, encoding="utf-8")
    (folder / VERSION).mkdir(exist_ok=True)
    for part in (file, file.with_name(f"{file.name}_data")):
        if part.exists():
            link(part, folder / VERSION / part.name)


def config_text(graph: ir.Graph) -> str:
    """Return the configuration of a graph, in protobuf's text format.

    A graph whose batch is free is batched by Triton, and its shapes are those of one request; one with a
    fixed batch is not, and they are whole.
    """
    values = [*graph.inputs, *graph.outputs]
    is_batched = all(not isinstance(_shape(value)[0], int) for value in values)
    lines = [
        f'{HEADER}platform: "onnxruntime_onnx"',
        f"max_batch_size: {LARGEST_BATCH if is_batched else 0}",
        *_section("input", graph.inputs, is_batched),
        *_section("output", graph.outputs, is_batched),
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
    ]
    return "\n".join(lines) + f"\n{BATCHING if is_batched else ''}"


def _section(name: str, values: Sequence[ir.Value], is_batched: bool) -> list[str]:
    entries = []
    for value in values:
        sizes = [str(size if isinstance(size, int) else -1) for size in _shape(value)]
        dims = ", ".join(sizes[1:] if is_batched else sizes)
        entries.append(f'  {{ name: "{value.name}" data_type: {_type(value)} dims: [ {dims} ] }}')
    return [f"{name} [", ",\n".join(entries), "]"]


def _shape(value: ir.Value) -> ir.Shape:
    if value.shape is None or not len(value.shape):
        raise ExportError(f"Triton is to be told the shape of {value.name}, which the file does not say.")
    return value.shape


def _type(value: ir.Value) -> str:
    if value.dtype not in TYPES:
        raise ExportError(f"{value.name} is of type {value.dtype}, which Triton is not told of here.")
    return TYPES[value.dtype]
