"""What stays in fp32 in a file of 16 bits: small graphs, each with a form that fp16 would ruin."""

import exports
import numpy as np
import onnx_ir as ir
import pytest
import torch

from qdqpatch.exporter.precision import PRECISIONS, lower

HALF = PRECISIONS["float16"]
EPSILON = 2.0**-11
"""Half the distance of neighbouring numbers of fp16, relative to them."""


def graph(text: str) -> ir.Model:
    """Return a graph whose values have the types that are inferred."""
    import onnx

    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {text}')
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def lowered(text: str) -> ir.Model:
    """Return a graph with all in fp16 that may be."""
    model = graph(text)
    lower(model, HALF)
    return model


def run(model: ir.Model, **inputs: np.ndarray) -> np.ndarray:
    """Return the only output."""
    (found,) = exports.run(model, {name: torch.from_numpy(array) for name, array in inputs.items()})
    return found


def types(model: ir.Model, operator: str) -> list[ir.DataType]:
    """Return what the nodes of an operator compute."""
    return [node.outputs[0].dtype for node in model.graph if node.op_type == operator]


ROTARY = """(int64[1, 1, L] positions, float[1, L, 4] x) => (float[1, L, 4] y) <
float[1, 4, 1] frequencies = {1.0, 0.1, 0.01, 0.001}> {
numbers = Cast <to = 1> (positions)
angles = MatMul (frequencies, numbers)
turned = Transpose <perm = [0, 2, 1]> (angles)
cosine = Cos (turned) y = Mul (x, cosine) }"""


def test_the_angles_of_far_positions_are_exact() -> None:
    model = lowered(ROTARY)
    assert types(model, "Cos") == [ir.DataType.FLOAT]
    assert "MatMul" not in [node.op_type for node in model.graph]  # TensorRT would multiply in TF32
    positions = np.array([[[0, 2049, 4097, 8191]]])
    found = run(model, positions=positions, x=np.ones((1, 4, 4), np.float16))
    assert found.dtype == np.float16
    angles = positions[0].T * np.array([1.0, 0.1, 0.01, 0.001], np.float32)
    # fp32 has 24 bits for an angle of 13 bits.
    np.testing.assert_allclose(found[0], np.cos(angles.astype(np.float64)), rtol=EPSILON, atol=2.0**-10)


RMS_NORM = """(float[1, 2, 4] x) => (float[1, 2, 4] y)
<float two = {2.0}, int64[1] last = {-1}, float epsilon = {0.000001}, float[4] weight = {1, 2, 3, 4}> {
square = Pow (x, two) mean = ReduceMean (square, last) more = Add (mean, epsilon) root = Sqrt (more)
inverse = Reciprocal (root) normed = Mul (x, inverse) y = Mul (normed, weight) }"""


def test_the_square_of_a_norm_does_not_overflow() -> None:
    model = lowered(RMS_NORM)
    assert types(model, "Pow") == types(model, "Reciprocal") == [ir.DataType.FLOAT]
    assert types(model, "Mul") == [ir.DataType.FLOAT16] * 2
    values = np.array([[[1, 2, 3, 4], [3e4, 6e4, 300, -500]]], np.float16)
    found = run(model, x=values)
    wide = values.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True)) * [1, 2, 3, 4]
    np.testing.assert_allclose(found, expected, rtol=4 * EPSILON)


POOLING = """(float[1, L, 2] states, int64[1, L, 1] mask) => (float[1, 2] y)
<int64[1] tokens = {1}, float least = {0.000000001}> {
ones = Cast <to = 1> (mask) kept = Mul (states, ones) sum = ReduceSum <keepdims = 0> (kept, tokens)
count = ReduceSum <keepdims = 0> (ones, tokens) some = Max (count, least) mean = Div (sum, some)
length = ReduceL2 <keepdims = 1> (mean, tokens) y = Div (mean, length) }"""


def test_a_mean_over_many_tokens_does_not_overflow() -> None:
    model = lowered(POOLING)
    # ONNX Runtime's CPU has no sums of fp16, and computes them in fp32 itself; TensorRT has.
    assert types(model, "ReduceSum") == [ir.DataType.FLOAT] * 2
    assert types(model, "Div") == [ir.DataType.FLOAT] * 2
    states = np.full((1, 8192, 2), 12, np.float16)
    states[..., 1] = 16
    found = run(model, states=states, mask=np.ones((1, 8192, 1), np.int64))
    np.testing.assert_allclose(found, [[0.6, 0.8]], rtol=EPSILON)
    assert found.dtype == np.float16
    assert [value.name for value in model.graph.outputs] == ["y"]


BUCKETS = """(int64[L] distance) => (int64[L] y) <float scale = {100}> {
number = Cast <to = 1> (distance) log = Log (number) scaled = Mul (log, scale) up = Ceil (scaled)
y = Cast <to = 7> (up) }"""


def test_an_index_is_computed_in_fp32() -> None:
    distance = np.arange(1, 513)
    assert types(lowered(BUCKETS), "Log") == types(lowered(BUCKETS), "Ceil") == [ir.DataType.FLOAT]
    np.testing.assert_array_equal(
        run(lowered(BUCKETS), distance=distance), run(graph(BUCKETS), distance=distance)
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_else_is_lowered(dtype: str) -> None:
    model = graph("""(float[1, 4] scores, bool[1, 4] mask) => (float[1, 4] y)
    <float zero = {0}, float low = {-340000000000000000000000000000000000000}> {
    bias = Where (mask, zero, low) sum = Add (scores, bias) y = Softmax (sum) }""")
    lower(model, PRECISIONS[dtype])
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [value for node in model.graph for value in node.outputs]
    assert {value.dtype for value in values} == {PRECISIONS[dtype].onnx, ir.DataType.BOOL}
    (low,) = (value for value in model.graph.initializers.values() if value.name == "low")
    assert np.isfinite(low.const_value.numpy().astype(np.float32))


def test_the_same_graph_becomes_the_same_file() -> None:
    sums = range(16)
    constants = ", ".join(f"float c{n} = {{{n}.5}}" for n in sums)
    nodes = " ".join(f"s{n} = ReduceSum (x{n}) y{n} = Add (s{n}, c{n})" for n in sums)
    given = ", ".join(f"float[4] x{n}" for n in sums)
    model = lowered(f"({given}) => ({', '.join(f'float[1] y{n}' for n in sums)}) <{constants}> {{ {nodes} }}")
    own = [name for name in model.graph.initializers if name.endswith("_wide")]
    assert own == [f"c{n}_wide" for n in sums]
