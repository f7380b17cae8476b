"""Rules for attention: its operators as each target has it, and Sum."""

import models
import numpy as np
import pytest
import torch
from exports import constant, needs_vnni, rewritten, run, types
from torch import nn

from qdqpatch.exporter.rules.integer_attention import IntegerAttention
from qdqpatch.exporter.rules.qdq_attention import QDQAttention
from qdqpatch.exporter.rules.sum_before_norm import SumBeforeNorm
from qdqpatch.nn.attention import qdq_attention
from qdqpatch.nn.quantizer import TensorQuantizer

BATCH, LENGTH, HEADS, SIZE = 2, 5, 2, 3
SCALING = SIZE**-0.5
OPERATOR = f'qdqpatch.Attention <path = "self", scaling = {SCALING:.9f}>'
MOVED = "\n".join(f"{name}_t = Transpose <perm = [0, 2, 1, 3]> ({name})" for name in "qkv")
RESULTS = "float[B, S, 2, 3] context, float[B, 2, S, S] probabilities"
ATTENTION = f"""g (float[B, S, 2, 3] q, float[B, S, 2, 3] k, float[B, S, 2, 3] v, float[B, 1, 1, S] mask)
=> ({RESULTS}) {{ {MOVED} context, probabilities = {OPERATOR} (q_t, k_t, v_t, mask) }}"""
RANGES = {"q": 2.0, "k": 1.7, "v": 2.2, "a": 1.0}
RULES = {
    "integer": IntegerAttention(),
    "integer in uint8": IntegerAttention(offset=True),
    "QDQ": QDQAttention(),
}
OFF = ["", "q", "k", "v", "a", "qk", "av", "qkva"]


def module(off: str = "") -> nn.Module:
    """Return a module with the quantizers of an attention, those of `off` off."""
    attention = nn.Module()
    for operand, amax in RANGES.items():
        quantizer = TensorQuantizer(disabled=operand in off)
        quantizer.amax = amax
        attention.add_module(f"matmul_{operand}_input_quantizer", quantizer)
    return nn.ModuleDict({"self": attention}).eval()


def inputs() -> models.Tensors:
    """Return the tensors of `ATTENTION`, the second row masked at its end."""
    generator = torch.Generator().manual_seed(5)
    tensors = {name: torch.randn(BATCH, LENGTH, HEADS, SIZE, generator=generator) for name in "qkv"}
    mask = torch.zeros(BATCH, 1, 1, LENGTH)
    mask[1, ..., 3:] = torch.finfo(torch.float32).min
    return tensors | {"mask": mask}


def expected(attention: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor):
    with torch.no_grad():
        tensors = [tensor.transpose(1, 2) for tensor in (q, k, v)]
        return [tensor.numpy() for tensor in qdq_attention(attention, *tensors, mask, scaling=SCALING)]


def assert_equal(found: list, wanted: list) -> None:
    """Compare context and probabilities; no element of these falls between two levels."""
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * np.abs(other).max())


@pytest.mark.parametrize(
    ("rule", "off"),
    [
        pytest.param(rule, off, marks=[needs_vnni] if (rule, off) == ("integer", "") else [])
        for rule in RULES
        for off in OFF
    ],
)
def test_attention_computes_the_same(rule: str, off: str) -> None:
    attention = module(off)
    graph = rewritten(ATTENTION, attention, (RULES[rule],))
    assert_equal(run(graph, inputs()), expected(attention["self"], **inputs()))
    if off:
        assert "MatMulIntegerToFloat" not in types(graph.graph)
        assert types(graph.graph).count("QuantizeLinear") == 4 - len(off)


@pytest.mark.parametrize("rule", [pytest.param("integer", marks=needs_vnni), "integer in uint8", "QDQ"])
def test_attention_without_a_mask(rule: str) -> None:
    text = ATTENTION.replace(", float[B, 1, 1, S] mask)", ")").replace("v_t, mask)", "v_t)")
    tensors = {name: tensor for name, tensor in inputs().items() if name != "mask"}
    graph = rewritten(text, module(), (RULES[rule],))
    assert "Add" not in types(graph.graph)
    assert_equal(run(graph, tensors), expected(module()["self"], **tensors, mask=None))


@pytest.mark.parametrize(("offset", "dtype", "zero"), [(False, np.int8, 0), (True, np.uint8, 128)])
def test_onnx_runtime_gets_unsigned_times_signed_if_there_is_vnni(
    offset: bool, dtype: type, zero: int
) -> None:
    graph = rewritten(ATTENTION, module(), (IntegerAttention(offset=offset),)).graph
    names = ("self.query_x_key", "self.probabilities_x_value")
    products = [node for node in graph if node.op_type == "MatMulIntegerToFloat"]
    assert [node.name for node in products] == list(names)
    for node in products:
        left, right = constant(node.inputs[4]), constant(node.inputs[5])
        assert (left.dtype, int(left)) == (np.uint8, 128)
        assert (right.dtype, int(right)) == (dtype, zero)
    scales = [[constant(value) for value in node.inputs[2:4]] for node in products]
    step = {name: np.float32(amax) / np.float32(127) for name, amax in RANGES.items()}
    assert scales == [[step["q"] * np.float32(SCALING), step["k"]], [step["a"], step["v"]]]
    for node in graph:  # only integers are moved, but for the result
        if node.op_type == "Transpose" and node.outputs[0].name != "context":
            assert node.inputs[0].producer().op_type == "QuantizeLinear"


def test_qdq_has_a_pair_on_every_operand_of_a_matmul() -> None:
    graph = rewritten(ATTENTION, module(), (QDQAttention(),)).graph
    products = [node for node in graph if node.op_type == "MatMul"]
    assert [node.name for node in products] == ["self.query_x_key", "self.probabilities_x_value"]
    for node in products:
        for operand in node.inputs:
            assert operand.producer().op_type == "DequantizeLinear"
            assert operand.producer().inputs[0].producer().op_type == "QuantizeLinear"
    (add,) = (node for node in graph if node.op_type == "Add")
    assert add.inputs[0].producer() is products[0]
    quantize = products[0].inputs[0].producer().inputs[0].producer()
    assert quantize.inputs[0].producer().op_type == "Mul"  # 1/sqrt(d), before the first matmul
    assert constant(quantize.inputs[1]) == np.float32(RANGES["q"]) / np.float32(127) * np.float32(SCALING)


def test_keys_and_values_have_the_same_levels_without_vnni() -> None:
    levels = []
    for offset in (False, True):
        graph = rewritten(ATTENTION, module(), (IntegerAttention(offset=offset),))
        rights = [node.inputs[1].name for node in graph.graph if node.op_type == "MatMulIntegerToFloat"]
        levels.append([integers.astype(int) - 128 * offset for integers in run(graph, inputs(), *rights)[2:]])
    for usual, stored_higher in zip(*levels, strict=True):
        assert (usual == stored_higher).all()
        assert len(np.unique(usual)) > 10


def test_the_levels_of_the_query_are_the_models() -> None:
    attention, tensors = module(), inputs()
    graph = rewritten(ATTENTION, attention, (IntegerAttention(),))
    assert "Mul" not in types(graph.graph)  # 1/sqrt(d) is in the scale of the product
    levels = run(graph, tensors, graph.graph.node("self.query_x_key").inputs[0].name)[2]
    integers = attention["self"].matmul_q_input_quantizer.integers(tensors["q"].transpose(1, 2)).numpy()
    assert (levels.astype(int) - 128 == integers).all()


def test_only_the_add_before_a_norm_becomes_a_sum() -> None:
    text = """g (float[N, 4] x, float[4] one) => (float[N, 4] y) {
        a = Add (x, x)
        n = LayerNormalization <axis = -1> (a, one)
        m = Mul (n, x)
        l = LayerNormalization <axis = -1> (m, one)
        y = Add (l, x)
    }"""
    graph = rewritten(text, nn.Module(), (SumBeforeNorm(),))
    assert types(graph.graph) == ["Sum", "LayerNormalization", "Mul", "LayerNormalization", "Add"]
    tensors = {"x": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), "one": torch.ones(4)}
    assert run(graph, tensors)[0].tolist() == run(rewritten(text, nn.Module()), tensors)[0].tolist()


@pytest.mark.parametrize("rule", [pytest.param("integer", marks=needs_vnni), "integer in uint8", "QDQ"])
def test_heads_that_come_before_the_positions_already(rule: str) -> None:
    """As of a model that rotates query and key, after the Transpose; the value is only transposed."""
    text = f"""g (float[B, 2, S, 3] q, float[B, 2, S, 3] k, float[B, S, 2, 3] v, float[B, 1, 1, S] mask)
    => ({RESULTS}) {{ v_t = Transpose <perm = [0, 2, 1, 3]> (v)
    context, probabilities = {OPERATOR} (q, k, v_t, mask) }}"""
    graph, tensors = rewritten(text, module(), (RULES[rule],)), inputs()
    turned = {name: tensors[name].transpose(1, 2).contiguous() for name in "qk"}
    assert_equal(run(graph, tensors | turned), expected(module()["self"], **tensors))
    # The key's last two, the value's heads and the context's; where the query stands is where it is read.
    assert types(graph.graph).count("Transpose") == 3
