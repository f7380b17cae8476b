"""Matrix products that a model computes itself, between two quantizers: their names, and integers."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from exports import needs_vnni, rewritten, run, types
from torch import nn

from qdqpatch.exporter.kernels import match, matmuls, name_products, number_runs
from qdqpatch.exporter.rules.integer_product import IntegerProduct
from qdqpatch.exporter.rules.qdq_quantizer import QDQActivation
from qdqpatch.nn.quantizer import TensorQuantizer

NAMES = {"x": "matmul_c2p_q_input_quantizer", "y": "matmul_c2p_k_input_quantizer"}
GRAPH = f"""g (float[B, 3, 4] x, float[B, 4, 5] y) => (float[B, 3, 5] z) {{
x_q = qdqpatch.FakeQuantize <path = "self.{NAMES["x"]}"> (x)
y_q = qdqpatch.FakeQuantize <path = "self.{NAMES["y"]}"> (y)
z = MatMul (x_q, y_q) }}"""


def module() -> nn.Module:
    """Return a module with the quantizers of `GRAPH`."""
    attention = nn.Module()
    for name in NAMES.values():
        quantizer = TensorQuantizer()
        quantizer.amax = 2.0
        attention.add_module(name, quantizer)
    return nn.ModuleDict({"self": attention}).eval()


@pytest.mark.parametrize("offset", [pytest.param(False, marks=needs_vnni), True])
def test_a_product_of_integers_is_the_same(offset: bool) -> None:
    generator, quantizers = torch.Generator().manual_seed(2), module()["self"]
    tensors = {name: torch.randn(2, *size, generator=generator) for name, size in
               (("x", (3, 4)), ("y", (4, 5)))}  # fmt: skip
    graph = rewritten(GRAPH, module(), (IntegerProduct(offset), QDQActivation(offset=True)))
    assert "MatMul" not in types(graph.graph)
    assert "DequantizeLinear" not in types(graph.graph)
    (found,) = run(graph, tensors)
    with torch.no_grad():
        expected = torch.matmul(*(getattr(quantizers, NAMES[name])(tensors[name]) for name in "xy"))
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


def test_one_with_a_float_operand_is_left() -> None:
    text = GRAPH.replace("(x_q, y_q)", "(x_q, y)")
    graph = rewritten(text, module(), (IntegerProduct(), QDQActivation(offset=True)))
    assert "MatMul" in types(graph.graph)


def test_products_go_by_their_operands_and_runs_by_their_number() -> None:
    text = '<ir_version: 10, opset_import: ["" : 20, "qdqpatch" : 1]>' + GRAPH.replace(
        "z = MatMul (x_q, y_q)", "first = MatMul (x_q, y_q) z = MatMul (x_q, y_q)"
    )
    graph = ir.from_onnx_text(text).graph
    name_products(graph)
    number_runs(graph)
    names = [node.name for node in graph if node.op_type == "MatMul"]
    assert names == ["self.c2p_q_x_c2p_k", "self.c2p_q_x_c2p_k#2"]
    found = match(module(), {name: {name} for name in names}, [])
    assert [operation.reason for operation in found] == ["the engine took another kernel"] * 2
    off = module()
    off["self"].matmul_c2p_k_input_quantizer.disable()
    found = match(off, {name: {name} for name in names}, [])
    assert [operation.reason for operation in found] == [
        "not quantized: matmul_c2p_k_input_quantizer off"
    ] * 2


def test_a_matmul_goes_by_what_scales_it_too_and_constants_are_none() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[2, 2] x, float[2, 2] y) => (float[2, 2] out)
    <float[2, 2] a = {1, 1, 1, 1}, float half = {2}> {
    scores = MatMul (x, y) scaled = Div (scores, half) known = MatMul (a, a) out = Add (scaled, known) }"""
    graph = ir.from_onnx_text(text).graph
    for number, node in enumerate(node for node in graph if node.op_type == "MatMul"):
        node.name = f"product {number}"
    next(node for node in graph if node.op_type == "Div").name = "division"
    assert matmuls(graph) == {"product 0": ["product 0", "scores", "division", "scaled", "out"]}
