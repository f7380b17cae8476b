"""What keeps a division finite stays in a graph."""

import onnx_ir as ir
import pytest
from onnxscript.optimizer import optimize

from qdqpatch.exporter.epsilons import keep_epsilons

GRAPH = """<ir_version: 10, opset_import: ["" : 20]>
graph (float[N] x) => (float[N] y) {{
    small = Constant<value_float = {number}>()
    below = Add({operands})
    y = Div(x, below)
}}"""


@pytest.mark.parametrize(("number", "kept"), [("1e-10", True), ("1e-8", True), ("0.0", False)])
@pytest.mark.parametrize("operands", ["x, small", "small, x"])
def test_a_small_number_is_no_zero(operands: str, number: str, kept: bool) -> None:
    model = ir.from_onnx_text(GRAPH.format(operands=operands, number=number))
    keep_epsilons(model.graph)
    optimize(model)
    assert [node.op_type for node in model.graph] == ["Add", "Div"] if kept else ["Div"]
