"""OpenVINO on the CPU: signed Q/DQ pairs, from which it makes its own integer kernels, as IR."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qdqpatch.engines.homes import IR_FOLDER
from qdqpatch.engines.openvino_graph import source_of
from qdqpatch.engines.sessions import OPENVINO
from qdqpatch.engines.telemetry import no_telemetry
from qdqpatch.exporter.kernels import Kernel
from qdqpatch.exporter.rules.qdq_attention import QDQAttention
from qdqpatch.exporter.rules.qdq_linear import QDQLinear
from qdqpatch.exporter.rules.qdq_quantizer import QDQActivation
from qdqpatch.exporter.rules.quant_embedding import LookUpIntegers
from qdqpatch.exporter.targets.base import Target, write_onnx

IR_FILE = f"{IR_FOLDER}/openvino_model.xml"
KERNELS = ("FullyConnected", "MatMul", "Subgraph")
"""Layer types that hold matmuls; a Subgraph can be a whole attention."""


def write(model: ir.Model, file: Path) -> None:
    """Write the graph, an .xml file, and its weights, a .bin file beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # OpenVINO takes a comma for the end of a path.
    beside = None if "," in str(file.parent.resolve()) else file.parent
    with no_telemetry(), tempfile.TemporaryDirectory(dir=beside) as staging:
        openvino = importlib.import_module("openvino")
        write_onnx(model, Path(staging) / "model.onnx")
        converted = openvino.convert_model(Path(staging) / "model.onnx")
        openvino.save_model(converted, file, compress_to_fp16=False)
        del converted


def kernels(path: Path) -> list[Kernel]:
    """Return the kernels with matmuls in the graph that OpenVINO makes of a file."""
    with no_telemetry():
        openvino = importlib.import_module("openvino")
    core = openvino.Core()
    model = core.read_model(path)
    shifted = _shifted(model)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = []
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        kind = info["layerType"].astype(str) if "layerType" in info else ""
        if kind in KERNELS:
            precision = info["runtimePrecision"].astype(str)
            # It adds to a name what it did to the node, behind a slash.
            names = [name.partition("/")[0] for name in info["originalLayersNames"].astype(str).split(",")]
            integer = precision in ("u8", "i8") and shifted.isdisjoint(names)
            found.append(Kernel(frozenset(names), f"{kind} in {precision}", integer))
    # A Subgraph that scales what a matmul before it gave has the matmul's name too; the later one counts.
    return sorted(found, key=lambda kernel: not kernel.kind.startswith(KERNELS[-1]))


def _shifted(model: Any) -> set[str]:
    """Return the matmuls of two computed tensors that it multiplies in float, for an operand's zero point.

    It can put that into levels from 0 up for the left operand alone.
    """
    found = set()
    for node in model.get_ops():
        if node.get_type_name() == "MatMul":
            left, right = (_lowest_level(node, operand) for operand in (0, 1))
            if None not in (left, right) and (left not in (-128, 0) or right != -128):
                found.add(node.get_friendly_name())
    return found


def _lowest_level(node: Any, operand: int) -> int | None:
    """Return the lowest level of a computed operand, counted from that of 0; None of another operand."""
    before = source_of(node, operand)
    if before.get_type_name() != "FakeQuantize":
        return None
    tensor, low, high = (before.input_value(place).get_node() for place in (0, 3, 4))
    if tensor.get_type_name() == "Constant" or low.get_data().size > 1:
        return None
    lowest, highest = (float(one.get_data().item()) for one in (low, high))
    levels: int = before.get_levels()
    return round(lowest * (levels - 1) / (highest - lowest))


TARGET = Target(
    name="openvino",
    opset=20,
    passes=((QDQLinear(), QDQAttention(), QDQActivation(), LookUpIntegers()),),
    file=IR_FILE,
    write=write,
    engine=OPENVINO,
    kernels=kernels,
)
