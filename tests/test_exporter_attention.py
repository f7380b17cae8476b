"""Rules for attention: its operators as each target has it, 1/sqrt(d) in the query projection, Sum."""

import models
import numpy as np
import pytest
import torch
from exports import constant, rewritten, run, types
from torch import nn

from qdqpatch.attention import qdq_attention
from qdqpatch.exporter.rules.fold_scaling import FoldScaling
from qdqpatch.exporter.rules.integer_attention import IntegerAttention
from qdqpatch.exporter.rules.integer_linear import IntegerLinear
from qdqpatch.exporter.rules.qdq_attention import QDQAttention
from qdqpatch.exporter.rules.qdq_linear import QDQLinear
from qdqpatch.exporter.rules.sum_before_norm import SumBeforeNorm
from qdqpatch.linear import QuantLinear
from qdqpatch.quantizer import TensorQuantizer

BATCH, LENGTH, HEADS, SIZE = 2, 5, 2, 3
SCALING = SIZE**-0.5
OPERATOR = f'qdqpatch.Attention <path = "self", scaling = {SCALING:.9f}>'
MOVED = "\n".join(f"{name}_t = Transpose <perm = [0, 2, 1, 3]> ({name})" for name in "qkv")
RESULTS = "float[B, S, 2, 3] context, float[B, 2, S, S] probabilities"
ATTENTION = f"""g (float[B, S, 2, 3] q, float[B, S, 2, 3] k, float[B, S, 2, 3] v, float[B, 1, 1, S] mask)
=> ({RESULTS}) {{ {MOVED} context, probabilities = {OPERATOR} (q_t, k_t, v_t, mask) }}"""
PROJECTED = f"""g (
    float[B, S, 4] x, float[B, S, 2, 3] k, float[B, S, 2, 3] v, float[B, 1, 1, S] mask, int64[4] size
)
=> ({RESULTS}) {{ projected = qdqpatch.QuantLinear <path = "query"> (x) q = Reshape (projected, size)
{MOVED} context, probabilities = {OPERATOR} (q_t, k_t, v_t, mask) }}"""
RANGES = {"q": 2.0, "k": 1.7, "v": 2.2, "a": 1.0}
RULES = {"integer": IntegerAttention(), "QDQ": QDQAttention()}


def module(off: str = "") -> nn.Module:
    """Return a module with the quantizers of an attention, those of `off` off, and a query projection."""
    attention = nn.Module()
    for operand, amax in RANGES.items():
        quantizer = TensorQuantizer(disabled=operand in off)
        quantizer.amax = amax
        attention.add_module(f"matmul_{operand}_input_quantizer", quantizer)
    torch.manual_seed(4)
    query = QuantLinear(4, HEADS * SIZE)
    query._input_quantizer.amax = 2.5
    return nn.ModuleDict({"self": attention, "query": query}).eval()


def inputs() -> models.Tensors:
    """Return the tensors of `ATTENTION`, the second row masked at its end."""
    generator = torch.Generator().manual_seed(5)
    tensors = {name: torch.randn(BATCH, LENGTH, HEADS, SIZE, generator=generator) for name in "qkv"}
    mask = torch.zeros(BATCH, 1, 1, LENGTH)
    mask[1, ..., 3:] = torch.finfo(torch.float32).min
    return tensors | {"mask": mask}


def projected() -> models.Tensors:
    """Return the tensors of `PROJECTED`."""
    x = torch.randn(BATCH, LENGTH, 4, generator=torch.Generator().manual_seed(6))
    rest = {name: tensor for name, tensor in inputs().items() if name != "q"}
    return {"x": x, **rest, "size": torch.tensor([0, 0, HEADS, SIZE])}


def expected(attention: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor):
    with torch.no_grad():
        tensors = [tensor.transpose(1, 2) for tensor in (q, k, v)]
        return [tensor.numpy() for tensor in qdq_attention(attention, *tensors, mask, scaling=SCALING)]


def assert_equal(found: list, wanted: list) -> None:
    """Compare context and probabilities; no element of these falls between two levels."""
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * np.abs(other).max())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("off", ["", "q", "k", "v", "a", "qk", "av", "qkva"])
def test_attention_computes_the_same(rule: str, off: str) -> None:
    attention = module(off)
    graph = rewritten(ATTENTION, attention, (RULES[rule],))
    assert_equal(run(graph, inputs()), expected(attention["self"], **inputs()))
    if off:
        assert "MatMulIntegerToFloat" not in types(graph.graph)
        assert types(graph.graph).count("QuantizeLinear") == 4 - len(off)


def test_attention_without_a_mask() -> None:
    text = ATTENTION.replace(", float[B, 1, 1, S] mask)", ")").replace("v_t, mask)", "v_t)")
    tensors = {name: tensor for name, tensor in inputs().items() if name != "mask"}
    for rule in RULES.values():
        graph = rewritten(text, module(), (rule,))
        assert "Add" not in types(graph.graph)
        assert_equal(run(graph, tensors), expected(module()["self"], **tensors, mask=None))


def test_onnx_runtime_gets_unsigned_times_signed() -> None:
    graph = rewritten(ATTENTION, module(), (IntegerAttention(),)).graph
    names = ("self.query_x_key", "self.probabilities_x_value")
    products = [node for node in graph if node.op_type == "MatMulIntegerToFloat"]
    assert [node.name for node in products] == list(names)
    for node in products:
        left, right = constant(node.inputs[4]), constant(node.inputs[5])
        assert (left.dtype, int(left)) == (np.uint8, 128)
        assert (right.dtype, int(right)) == (np.int8, 0)
    scales = [[constant(each) for each in node.inputs[2:4]] for node in products]
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
    assert "Mul" in types(graph)  # nothing folded the factor


@pytest.mark.parametrize("rules", [(IntegerLinear(), IntegerAttention()), (QDQLinear(), QDQAttention())])
@pytest.mark.parametrize("off", ["", "q"])
def test_the_query_projection_takes_the_factor(rules: tuple, off: str) -> None:
    torch_model = module(off)
    graph = rewritten(PROJECTED, torch_model, (FoldScaling(),), rules)
    assert "Mul" not in types(graph.graph)
    assert "Div" not in types(graph.graph)
    tensors = projected()
    with torch.no_grad():
        q = torch_model["query"](tensors["x"]).view(BATCH, LENGTH, HEADS, SIZE)
    rest = {name: tensors[name] for name in ("k", "v", "mask")}
    assert_equal(run(graph, tensors), expected(torch_model["self"], q, **rest))
    stored = graph.graph.initializers
    dense, factor = torch_model["query"], np.float32(SCALING)
    bias = dense.bias.detach().numpy()
    assert constant(stored["query.bias"]).tolist() == (bias * factor).tolist()
    integers = dense._weight_quantizer.integers(dense.weight.detach()).numpy()
    assert (constant(stored["query.weight_quantized"]) == integers.T).all()
    plain = rewritten(PROJECTED, torch_model, rules).graph.initializers["query.weight_scale"]
    assert constant(stored["query.weight_scale"]).tolist() == (constant(plain) * factor).tolist()


def test_the_levels_of_the_query_stay_the_same() -> None:
    torch_model, tensors = module(), projected()
    levels = []
    for first in ((), (FoldScaling(),)):
        graph = rewritten(PROJECTED, torch_model, first, (IntegerLinear(), IntegerAttention()))
        (node,) = (
            node for node in graph.graph if node.op_type == "QuantizeLinear" and
            node.inputs[1].name == graph.graph.node("self.query_x_key").inputs[2].name
        )  # fmt: skip
        levels.append(run(graph, tensors, node.outputs[0].name)[2])
    with torch.no_grad():
        query = torch_model["query"](tensors["x"])
        integers = torch_model["self"].matmul_q_input_quantizer.integers(query).numpy()
    assert (levels[1].astype(int).reshape(integers.shape) - 128 == integers).all()
    assert (levels[0].ravel() == levels[1].ravel()).all()


def test_a_query_that_is_read_elsewhere_keeps_its_size() -> None:
    text = PROJECTED.replace(RESULTS, f"{RESULTS}, float[B, S, 6] twice")
    text = text.replace("q = Reshape", "twice = Add (projected, projected) q = Reshape")
    torch_model, tensors = module(), projected()
    graph = rewritten(text, torch_model, (FoldScaling(),), (IntegerLinear(), IntegerAttention()))
    assert "Mul" in types(graph.graph)
    with torch.no_grad():
        query = torch_model["query"](tensors["x"])
    context, probabilities, twice = run(graph, tensors)
    np.testing.assert_allclose(twice, 2 * query.numpy(), rtol=0, atol=2e-6 * float(query.abs().max()))
    rest = {name: tensors[name] for name in ("k", "v", "mask")}
    wanted = expected(torch_model["self"], query.view(BATCH, LENGTH, HEADS, SIZE), **rest)
    assert_equal([context, probabilities], wanted)


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
