"""ONNX Runtime on the CPU: its own kernel for every quantized matmul, and nothing else moved in fp32 twice.

What each rule is worth is measured by `benchmarks/export_speed.py`.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from qdqpatch.engines.sessions import ONNX_RUNTIME
from qdqpatch.exporter.graph import MICROSOFT
from qdqpatch.exporter.kernels import Kernel
from qdqpatch.exporter.rules.integer_attention import IntegerAttention
from qdqpatch.exporter.rules.integer_linear import IntegerLinear
from qdqpatch.exporter.rules.integer_product import IntegerProduct
from qdqpatch.exporter.rules.qdq_quantizer import QDQActivation
from qdqpatch.exporter.rules.quant_embedding import LookUpIntegers
from qdqpatch.exporter.rules.sum_before_norm import SumBeforeNorm
from qdqpatch.exporter.targets.base import ONNX_PATH, Target, write_onnx
from qdqpatch.output.temporary import temporary_folder

INTEGER_KERNELS = ("MatMulIntegerToFloat", "QLinearMatMul", "MatMulInteger", "DynamicQuantizeMatMul")
FLOAT_KERNELS = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm")


def kernels(path: Path) -> list[Kernel]:
    """Return the kernels with matmuls in the graph that ONNX Runtime makes of a file."""
    ort = importlib.import_module("onnxruntime")
    with temporary_folder() as folder:
        optimized = folder / "optimized.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(optimized)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "optimized.data"
        )
        try:
            ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the engine's own type
            ONNX_RUNTIME.load(path)  # raises if it is the file that the engine refuses
            raise OSError(f"{ONNX_RUNTIME.name} failed to write there what it makes of the file") from error
        graph = ir.load(optimized).graph
        return [
            Kernel(
                frozenset([(node.name or "").removeprefix("fused ")]),
                node.op_type,
                node.op_type in INTEGER_KERNELS,
            )
            for node in graph
            if node.op_type in (*INTEGER_KERNELS, *FLOAT_KERNELS)
        ]


TARGET = Target(
    name="onnxruntime",
    opset=20,
    passes=(
        (
            IntegerLinear(),
            IntegerAttention(),
            IntegerProduct(),
            QDQActivation(offset=True),
            LookUpIntegers(),
        ),
        (SumBeforeNorm(),),
    ),
    file=ONNX_PATH,
    write=write_onnx,
    engine=ONNX_RUNTIME,
    kernels=kernels,
    domains={MICROSOFT: 1},
    cpu="vnni",
)
"""For processors that multiply uint8 by int8 exactly: x86 with VNNI, and Arm."""


def target(vnni: bool = True, cpu: str | None = None) -> Target:
    """Return the target, or the one that is exact on any processor: uint8 where int8 could saturate.

    Args:
        vnni: Whether processors multiply uint8 by int8 exactly.
        cpu: What the record calls them; None for `vnni` or `avx2`.
    """
    if vnni:
        return replace(TARGET, cpu=cpu or TARGET.cpu)
    passes = tuple(
        tuple(
            replace(rule, offset=True)
            if isinstance(rule, IntegerLinear | IntegerAttention | IntegerProduct)
            else rule
            for rule in rules
        )
        for rules in TARGET.passes
    )
    return replace(TARGET, passes=passes, cpu="avx2")
