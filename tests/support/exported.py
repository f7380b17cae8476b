"""Tiny exported models: the sum of token embeddings under the mask."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qdqpatch.engines.telemetry import no_telemetry

VOCABULARY, WIDTH = 48, 16


def write_onnx(
    path: Path,
    sizes: tuple[int | str, int | str] = ("batch", "sequence"),
    external: str | None = None,
    ids: str = "input_ids",
    ids_type: int = TensorProto.INT64,
    domain: str = "",
) -> Path:
    """Write a model that takes ids and an attention mask.

    Args:
        path: The file.
        sizes: The dimensions of its inputs: a number is fixed.
        external: Where the weights go, beside the file; None for into it.
        ids: The name of the ids.
        ids_type: Their type.
        domain: Of the first node; one that no engine knows makes a model that no engine loads.
    """
    weight = np.random.default_rng(0).normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["weight", ids], ["embedded"], domain=domain),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["embedded", "column"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "first"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(ids, ids_type, sizes),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, sizes),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [sizes[0], WIDTH])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "first"),
        ],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    where: dict[str, Any] = {}
    if external is not None:
        where = {"save_as_external_data": True, "location": external, "size_threshold": 0}
    onnx.save(model, str(path), **where)
    return path


def write_openvino(path: Path, source: Path) -> Path:
    """Write an ONNX file as OpenVINO's .xml and .bin."""
    with no_telemetry():
        import openvino

        openvino.save_model(openvino.convert_model(source), path, compress_to_fp16=False)
    return path
