"""Rules for one operator each: a quantized Linear as every target has it, and an embedding of integers."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from exports import arrays, constant, needs_vnni, rewritten, run, types
from torch import nn

from qdqpatch.exporter.rules.integer_linear import IntegerLinear
from qdqpatch.exporter.rules.qdq_linear import QDQLinear
from qdqpatch.exporter.rules.qdq_quantizer import QDQActivation
from qdqpatch.exporter.rules.quant_embedding import LookUpIntegers
from qdqpatch.nn.linear import QuantEmbedding, QuantLinear
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.nn.toolkit import QuantDescriptor

LINEAR = 'g (float[N, 8] x) => (float[N, 4] y) { y = qdqpatch.QuantLinear <path = "dense"> (x) }'
RELATIVE = 1e-6  # of fp32 sums of eight products, in whatever order

RULES = {
    "integer": IntegerLinear(),
    "integer in uint8": IntegerLinear(offset=True),
    "QDQ": QDQLinear(),
    "QDQ by row": QDQLinear(transposed=False),
    "QDQ of fp32": QDQLinear(float_weights=True),
    "QDQ of fp32 by row": QDQLinear(float_weights=True, transposed=False),
}
COMPUTED = [pytest.param(rule, marks=[needs_vnni] if rule == "integer" else []) for rule in RULES]


def model(bias: bool = True, per_tensor: bool = False, **inputs: bool) -> nn.Module:
    """Return a module with a Linear `dense` of 8 to 4 features."""
    torch.manual_seed(3)
    dense = QuantLinear(8, 4, bias=bias)
    dense._input_quantizer = TensorQuantizer(QuantDescriptor(**inputs))
    dense._input_quantizer.amax = 2.5
    if per_tensor:
        dense._weight_quantizer = TensorQuantizer(QuantDescriptor())
    return nn.ModuleDict({"dense": dense}).eval()


def values(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return inputs of which some are outside the range."""
    return {"x": torch.randn(16, 8, generator=torch.Generator().manual_seed(seed)) * 1.5}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("rule", COMPUTED)
def test_a_linear_computes_the_same(rule: str, unsigned: bool, per_tensor: bool, bias: bool) -> None:
    module = model(bias, per_tensor, unsigned=unsigned)
    (found,) = run(rewritten(LINEAR, module, (RULES[rule],)), values())
    with torch.no_grad():
        expected = module["dense"](values()["x"]).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


@pytest.mark.parametrize("rule", COMPUTED)
def test_a_smoothed_input_is_multiplied_first(rule: str) -> None:
    module = model()
    module["dense"].scale_input(torch.tensor([1, 2, 4, 0.5, 1, 0.25, 8, 1]))
    graph = rewritten(LINEAR, module, (RULES[rule],))
    assert types(graph.graph).count("Mul") == 1
    (found,) = run(graph, values())
    with torch.no_grad():
        expected = module["dense"](values()["x"]).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("off", ["_input_quantizer", "_weight_quantizer"])
def test_a_quantizer_that_is_off_leaves_that_operand_float(rule: str, off: str) -> None:
    module = model()
    setattr(module["dense"], off, TensorQuantizer(disabled=True))
    graph = rewritten(LINEAR, module, (RULES[rule],))
    (found,) = run(graph, values())
    with torch.no_grad():
        expected = module["dense"](values()["x"]).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())
    quantized = types(graph.graph).count("QuantizeLinear")
    is_of_fp32 = "fp32" in rule and off == "_input_quantizer"
    assert quantized == (is_of_fp32 if off == "_input_quantizer" else 1)
    assert "MatMulIntegerToFloat" not in types(graph.graph)


@pytest.mark.parametrize("unsigned", [False, True])
def test_onnx_runtime_gets_one_kernel(unsigned: bool) -> None:
    module = model(unsigned=unsigned)
    graph = rewritten(LINEAR, module, (IntegerLinear(),)).graph
    assert types(graph) == ["QuantizeLinear", "MatMulIntegerToFloat"]
    quantize, product = graph
    assert (product.domain, product.name) == ("com.microsoft", "dense")
    a, b, a_scale, b_scale, a_zero, b_zero, bias = product.inputs
    assert a is quantize.outputs[0]
    assert b.name == "dense.weight_quantized"
    assert (b.dtype, list(b.shape)) == (ir.DataType.INT8, [8, 4])
    integers = module["dense"]._weight_quantizer.integers(module["dense"].weight)
    assert constant(b).tolist() == integers.T.tolist()
    assert constant(a_scale).shape == ()
    assert constant(a_scale) == np.float32(2.5) / np.float32(255 if unsigned else 127)
    assert constant(b_scale).shape == (4,)
    zero = constant(a_zero)
    assert (zero.dtype, int(zero)) == (np.uint8, 0 if unsigned else 128)
    assert (constant(b_zero).dtype, constant(b_zero).tolist()) == (np.int8, [0] * 4)
    assert constant(bias).tolist() == module["dense"].bias.tolist()


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("per_tensor", [False, True])
def test_without_vnni_the_weights_levels_are_stored_as_uint8(unsigned: bool, per_tensor: bool) -> None:
    module = model(per_tensor=per_tensor)
    if unsigned:
        axis = None if per_tensor else 0
        module["dense"]._weight_quantizer = TensorQuantizer(QuantDescriptor(axis=axis, unsigned=True))
        module["dense"].weight.data.abs_()
    graphs = [rewritten(LINEAR, module, (IntegerLinear(offset=offset),)).graph for offset in (False, True)]
    usual, offset = (graph.node("dense").inputs for graph in graphs)
    zero = 0 if unsigned else 128
    assert constant(offset[1]).dtype == constant(offset[5]).dtype == np.uint8
    assert np.unique(constant(offset[5])).tolist() == [zero]
    assert constant(offset[5]).shape == constant(offset[3]).shape == (() if per_tensor else (4,))
    assert (constant(offset[1]).astype(int) - zero == constant(usual[1])).all()
    for place in (2, 3, 4, 6):  # scales, the input's zero point, bias
        assert constant(offset[place]).tolist() == constant(usual[place]).tolist()
    (found,) = run(rewritten(LINEAR, module, (IntegerLinear(offset=True),)), values())
    with torch.no_grad():
        expected = module["dense"](values()["x"]).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


@pytest.mark.parametrize("fits", [True, False])
def test_without_vnni_pairs_of_levels_that_fit_stay_signed(fits: bool) -> None:
    module = model()
    quantizer = module["dense"]._weight_quantizer
    with torch.no_grad():
        first = 0.5 if fits else 0.51  # of 127 levels: 64 and 64, or 65 and 65
        module["dense"].weight.copy_(torch.tensor([first, first, -1.0, 0.3] * 2))
    levels = quantizer.integers(module["dense"].weight).detach().numpy()
    usual, offset = (
        rewritten(LINEAR, module, (IntegerLinear(offset=value),)).graph.node("dense").inputs
        for value in (False, True)
    )
    assert constant(offset[1]).dtype == constant(offset[5]).dtype == (np.int8 if fits else np.uint8)
    assert (constant(offset[1]).astype(int) - constant(offset[5])).tolist() == levels.T.tolist()
    assert constant(offset[3]).tolist() == constant(usual[3]).tolist()


def test_signed_levels_are_stored_128_higher() -> None:
    module = model()
    integers = {}
    for rule in (IntegerLinear(), QDQLinear()):
        graph = rewritten(LINEAR, module, (rule,))
        (node,) = (node for node in graph.graph if node.op_type == "QuantizeLinear")
        integers[type(rule)] = run(graph, values(), node.outputs[0].name)[1]
    levels = module["dense"]._input_quantizer.integers(values()["x"]).numpy()
    assert (levels.min(), levels.max()) == (-128, 127)
    assert (integers[QDQLinear] == levels).all()
    assert (integers[IntegerLinear].astype(int) - 128 == levels).all()


@pytest.mark.parametrize(("transposed", "axis"), [(True, 1), (False, 0)])
def test_qdq_stores_the_weight_in_int8(transposed: bool, axis: int) -> None:
    module = model()
    graph = rewritten(LINEAR, module, (QDQLinear(transposed=transposed),)).graph
    moved = [] if transposed else ["Transpose"]
    pair = ["QuantizeLinear", "DequantizeLinear"]
    assert types(graph) == [*pair, "DequantizeLinear", *moved, "MatMul", "Add"]
    dequantize = graph[2]
    assert dequantize.attributes["axis"].as_int() == axis
    weight, scale, zero = (constant(value) for value in dequantize.inputs)
    dense = module["dense"]
    integers = dense._weight_quantizer.integers(dense.weight.detach()).numpy()
    assert weight.dtype == zero.dtype == np.int8
    assert (weight == (integers.T if transposed else integers)).all()
    fake = dense._weight_quantizer(dense.weight.detach()).numpy()
    # The toolkit divides by 127/amax, the engines multiply by amax/127: each rounds twice.
    np.testing.assert_array_max_ulp(integers * scale[:, None], fake, maxulp=2)
    assert (integers * scale[:, None] != 0).any()


def test_fp32_weights_are_quantized_in_the_graph() -> None:
    module = model()
    graph = rewritten(LINEAR, module, (RULES["QDQ of fp32 by row"],)).graph
    assert types(graph)[2:] == ["QuantizeLinear", "DequantizeLinear", "Transpose", "MatMul", "Add"]
    quantize, dequantize = graph[2], graph[3]
    assert (constant(quantize.inputs[0]) == module["dense"].weight.detach().numpy()).all()
    assert [node.attributes["axis"].as_int() for node in (quantize, dequantize)] == [0, 0]
    assert quantize.inputs[1:] == dequantize.inputs[1:]


def test_linears_with_one_grid_share_the_integers() -> None:
    module = nn.ModuleDict({"a": model()["dense"], "b": model()["dense"], "c": model()["dense"]})
    module["c"]._input_quantizer.amax = 3.0
    text = "g (float[N, 8] x) => (float[N, 4] a, float[N, 4] b, float[N, 4] c) {" + "".join(
        f' {name} = qdqpatch.QuantLinear <path = "{name}"> (x)' for name in "abc"
    )
    graph = rewritten(text + " }", module, (IntegerLinear(),)).graph
    assert types(graph).count("QuantizeLinear") == 2
    first = {node.name: node.inputs[0] for node in graph if node.op_type == "MatMulIntegerToFloat"}
    assert first["a"] is first["b"] is not first["c"]


@pytest.mark.parametrize("offset", [True, pytest.param(False, marks=needs_vnni)])
def test_integers_are_moved_and_not_floats(offset: bool) -> None:
    text = """g (float[N, 2, 4] x, int64[2] size) => (float[N, 4] y) {
        t = Transpose <perm = [0, 2, 1]> (x)
        flat = Reshape (t, size)
        y = qdqpatch.QuantLinear <path = "dense"> (flat)
    }"""
    module = model()
    graph = rewritten(text, module, (IntegerLinear(offset=offset),))
    assert types(graph.graph) == ["QuantizeLinear", "Transpose", "Reshape", "MatMulIntegerToFloat"]
    x = values()["x"].view(16, 2, 4)
    (found,) = run(graph, {"x": x, "size": torch.tensor([-1, 8])})
    with torch.no_grad():
        expected = module["dense"](x.transpose(1, 2).reshape(16, 8)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


@pytest.mark.parametrize(("offset", "dtype", "zero"), [(False, np.int8, 0), (True, np.uint8, 128)])
def test_a_quantizer_by_itself_is_exact(offset: bool, dtype: type, zero: int) -> None:
    module = nn.ModuleDict({"add": TensorQuantizer(QuantDescriptor())})
    module["add"].amax = 2.5
    text = 'g (float[N, 8] x) => (float[N, 8] y) { y = qdqpatch.FakeQuantize <path = "add"> (x) }'
    graph = rewritten(text, module, (QDQActivation(offset=offset),))
    assert types(graph.graph) == ["QuantizeLinear", "DequantizeLinear"]
    for node in graph.graph:
        assert constant(node.inputs[2]).dtype == dtype
        assert int(constant(node.inputs[2])) == zero
    (found,) = run(graph, values())
    np.testing.assert_array_max_ulp(found, module["add"](values()["x"]).numpy(), maxulp=2)


@pytest.mark.parametrize("axis", [0, None])
def test_an_embedding_looks_up_integers(axis: int | None) -> None:
    torch.manual_seed(3)
    table = nn.Embedding(6, 4)
    table.weight.data[2] = 0
    table.add_module("_weight_quantizer", TensorQuantizer(QuantDescriptor(axis=axis)))
    table.__class__ = QuantEmbedding
    text = 'g (int64[N, 3] ids) => (float[N, 3, 4] y) { y = qdqpatch.QuantEmbedding <path = "table"> (ids) }'
    graph = rewritten(text, nn.ModuleDict({"table": table}), (LookUpIntegers(),))
    assert (
        types(graph.graph) == ["Gather", "DequantizeLinear"]
        if axis is None
        else ["Gather", "Gather", "Cast", "Mul"]
    )
    stored = graph.graph[0].inputs[0]
    assert stored.dtype == ir.DataType.INT8
    assert (constant(stored) == table._weight_quantizer.integers(table.weight.detach()).numpy()).all()
    ids = {"ids": torch.tensor([[0, 1, 2], [5, 5, 3]])}
    (found,) = run(graph, ids)
    with torch.no_grad():
        np.testing.assert_array_max_ulp(found, arrays({"y": table(ids["ids"])})["y"], maxulp=2)
