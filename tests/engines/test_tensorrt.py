"""TensorRT for RTX as a witness: its log is read, refusals name the node, lint's rules are what it does."""

import functools
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import encoders
import models
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from click.testing import CliRunner
from encoders import Style, write_encoder

import qdqpatch
from qdqpatch.calibration import smooth_residuals
from qdqpatch.cli import main
from qdqpatch.engines.shapes import Shape
from qdqpatch.engines.tensorrt import build as building
from qdqpatch.engines.tensorrt.build import Build, build
from qdqpatch.engines.tensorrt.half import cast_floats, remove_quantizers
from qdqpatch.engines.tensorrt.layers import read_kernels
from qdqpatch.engines.tensorrt.table import EngineTable, read_table, read_tables
from qdqpatch.errors import ConfigError, EngineError
from qdqpatch.lint import check_file
from qdqpatch.lint.graph import read_sites

IS_INSTALLED = importlib.util.find_spec("tensorrt_rtx_bindings") is not None
COMPILES = pytest.mark.skipif(not IS_INSTALLED, reason="TensorRT for RTX is not installed")
SHAPE = Shape(4, 32)
SELF = "encoder.layer.0.attention.self"
ADDS = ("encoder.layer.0.attention.output", "encoder.layer.0.output")

LAYOUT = "Strides: [8,1], StrideOrder: [1,0], Datatype: {}, Format: (Linear) Row major linear format"
LINE = (
    "Name: a+b_myl0_1, LayerType: gemm, "
    f"Inputs: [ {{ Name: x, Dimensions: [4,8], {LAYOUT.format('Int8')} }}], "
    f"Constants: [ {{ Name: w, Dimensions: [8,2], {LAYOUT.format('Int8')} }}], "
    f"Outputs: [ {{ Name: y, Dimensions: [4,2], {LAYOUT.format('Half')} }}, "
    f"{{ Name: z, Dimensions: [], {LAYOUT.format('New')} }}], "
    "TacticName: t, StreamId: 0, Metadata: [ONNX Layer: a]\x1f[ONNX Layer: b[0]]"
)


def test_the_log_is_read() -> None:
    wait = "Name: w_2, LayerType: wait, Inputs: [], Constants: [], Outputs: [], TacticName: , Metadata: "
    (kernel,) = read_kernels([LINE, wait, "something else"])
    assert (kernel.name, kernel.kind, kernel.nodes) == ("a+b_myl0_1", "gemm", {"a", "b[0]"})
    assert [(tensor.shape, tensor.dtype, tensor.size) for tensor in kernel.inputs] == [((4, 8), "int8", 32)]
    assert [tensor.size for tensor in kernel.constants] == [16]
    assert [(tensor.dtype, tensor.size) for tensor in kernel.outputs] == [("fp16", 16), ("new", 4)]
    assert kernel.moved == 32 + 16 + 4


def test_without_quantizers_there_are_no_factors_either(tmp_path: Path) -> None:
    operators = []
    for name, is_smoothed in (("plain", False), ("smoothed", True)):
        model = models.uncalibrated()
        if is_smoothed:
            smooth_residuals(model, [models.inputs()])
        qdqpatch.calibrate(model, [models.inputs()], "max")
        graph = ir.load(qdqpatch.export(model, tmp_path / name, "tensorrt", check=False).file)
        before = sum(node.op_type == "Mul" for node in graph.graph)
        remove_quantizers(graph)
        operators.append(sorted(node.op_type for node in graph.graph))
    assert operators[0] == operators[1]
    assert before > operators[1].count("Mul")


def test_a_model_in_fp16_without_quantizers_computes_the_same(tmp_path: Path) -> None:
    file = write_encoder(tmp_path / "model.onnx", Style(weights="float", axis=0))
    model = ir.load(file)
    remove_quantizers(model)
    ir.save(model, tmp_path / "float.onnx")
    cast_floats(model, ir.DataType.FLOAT16)
    ir.save(model, tmp_path / "half.onnx")
    operators = {node.op_type for node in onnx.load(tmp_path / "half.onnx").graph.node}
    assert not operators & {"QuantizeLinear", "DequantizeLinear"}
    ids = np.arange(16)[None] % 16

    def run(name: str, dtype: type) -> np.ndarray:
        session = onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
        return session.run(None, {"input_ids": ids, "mask": np.zeros((1, 1, 1, 16), dtype)})[0]

    exact, half = run("float.onnx", np.float32), run("half.onnx", np.float16)
    assert half.dtype == np.float16
    np.testing.assert_allclose(
        half, exact, atol=0.02
    )  # of LayerNorm's outputs: 1 / 2048 times a few additions


@pytest.mark.parametrize(
    ("value", "expected"), [(-3.4e38, -65504), (1e-12, 2.0**-24), (0.0, 0.0), (0.5, 0.5), (1e5, 65504)]
)
def test_no_constant_overflows_or_vanishes(value: float, expected: float) -> None:
    from qdqpatch.engines.tensorrt.half import rounded

    assert rounded(np.array([value], np.float32), ir.DataType.FLOAT16).tolist() == [expected]


Compile = Callable[..., EngineTable]


def compile_layer(folder: Path, **changes) -> EngineTable:
    """Compile a layer with heads of 64, in fp16, for Ada."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "WIDTH", 128)
        file = write_encoder(folder / "model.onnx", Style(**{"half": True, **changes}))
    return read_table(build(file, "SM89", SHAPE), read_sites(file), None)


@pytest.fixture
def compiled(tmp_path: Path) -> Compile:
    """Compile a layer with changes."""
    return functools.partial(compile_layer, tmp_path)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> EngineTable:
    """The layer without any."""
    return compile_layer(tmp_path_factory.mktemp("good"))


def texts(table: EngineTable, operation: str) -> set[str]:
    return {row.text for row in table.rows if row.operation == operation}


@COMPILES
def test_a_good_graph(good: EngineTable) -> None:
    table = good
    assert table.fused_attentions == 1
    assert (
        texts(table, "query x key") == texts(table, "probabilities x value") == {"fused: int8, fp16 -> int8"}
    )
    assert texts(table, "linear") == {"gemm: int8 -> fp16"}
    assert all(row.fused and "int8" in row.reads for row in table.rows if row.operation == "residual add")
    assert [layer.name for layer in table.layers][-1] == "encoder.layer.0"
    assert sum(layer.moved for layer in table.layers) == table.build.moved


@COMPILES
@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("unknown-operator", {"matmul": "MatMulIntegerToFloat", "half": False}),
        ("unknown-operator", {"linear": "MatMulInteger", "half": False}),
        ("operand-type", {"dtype": "uint16", "zero": 0}),
        ("operand-type", {"dtype": "float8e5m2"}),
        ("operand-type", {"weight_dtype": "uint8"}),
        ("operand-type", {"dtype": "float8e4m3fn"}),
        ("symmetric", {"zero": 3}),
        ("integer-bias", {"bias": "int32", "half": False}),
    ],
)
def test_what_lint_calls_refused_is(compiled: Compile, tmp_path: Path, rule: str, change: dict) -> None:
    with pytest.raises(EngineError, match=r"refuses|cannot compile|crashed"):
        compiled(**change)
    broken = check_file(tmp_path / "model.onnx", "tensorrt").broken
    assert broken[rule][0].rule.effect == "refused"


@COMPILES
def test_what_lint_calls_float_is(compiled: Compile, tmp_path: Path) -> None:
    table = compiled(floats=("query", "query.weight", "q"))
    assert texts(table, "linear") == {"gemm: int8 -> fp16", "runtime_fusion: fp16 -> fp16"}
    assert not any(row.fused for row in table.rows if "x" in row.operation)
    assert set(check_file(tmp_path / "model.onnx", "tensorrt").broken) == {"not-quantized"}
    table = compiled(by_input=True)
    assert not any(text.startswith("gemm: int8") for text in texts(table, "linear"))
    assert set(check_file(tmp_path / "model.onnx", "tensorrt").broken) == {"weight-axis"}


@COMPILES
def test_what_lint_calls_slower_is(compiled: Compile, good: EngineTable, tmp_path: Path) -> None:
    table = compiled(floats=tuple(f"{path}.residual" for path in ADDS))
    assert not any("int8" in row.reads for row in table.rows if row.operation == "residual add")
    assert table.build.moved > good.build.moved
    assert set(check_file(tmp_path / "model.onnx", "tensorrt").broken) == {"residual"}
    table = compiled(extra=("scores",))
    assert table.fused_attentions == 0
    assert len(table.build.kernels) > len(good.build.kernels)
    assert set(check_file(tmp_path / "model.onnx", "tensorrt").broken) == {"float-between"}


@COMPILES
@pytest.mark.parametrize(
    "change",
    [
        {"extra": ("gelu", "norm")},
        {"late_views": "after DQ"},
        {"scale": "after"},
        {"weights": "float", "axis": 0},
    ],
)
def test_what_costs_nothing_in_this_version(compiled: Compile, good: EngineTable, change: dict) -> None:
    table = compiled(**change)
    assert (len(table.build.kernels), table.build.moved) == (len(good.build.kernels), good.build.moved)


@COMPILES
def test_factors_behind_the_operands_of_an_add_cost_nothing(
    compiled: Compile, good: EngineTable, tmp_path: Path
) -> None:
    """As `smooth_residuals` leaves them: lint finds the integers behind them, and the kernel reads those."""
    table = compiled(factors=True)
    adds = [(row.fused, row.reads) for row in table.rows if row.operation == "residual add"]
    assert adds == [(row.fused, row.reads) for row in good.rows if row.operation == "residual add"]
    assert (len(table.build.kernels), table.build.moved) == (len(good.build.kernels), good.build.moved)
    assert not check_file(tmp_path / "model.onnx", "tensorrt").broken


@COMPILES
def test_float8_from_ada_on(compiled: Compile, tmp_path: Path) -> None:
    table = compiled(dtype="float8e4m3fn", weight_dtype="float8e4m3fn")
    assert texts(table, "linear") == {"gemm: fp8 -> fp16"}
    assert table.fused_attentions == 1
    assert check_file(tmp_path / "model.onnx", "tensorrt").findings == ()
    with pytest.raises(EngineError, match=r"for SM80: FP8 came with SM89 \(Ada\)\.$"):
        build(tmp_path / "model.onnx", "SM80", SHAPE)


def lint(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["lint", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


@COMPILES
def test_lint_builds(tmp_path: Path) -> None:
    file = write_encoder(tmp_path / "model.onnx", Style())
    arguments = (file, "--target", "tensorrt", "--build", "--capability", "SM89", "--shape", "2x16")
    code, out, _ = lint(*arguments)
    assert code == 0
    assert "model.onnx compiled for SM89 by TensorRT for RTX" in out
    assert out.splitlines()[-1].startswith("SM89: ")
    assert "in fp16 without quantizers" in out.splitlines()[-1]
    code, out, _ = lint(*arguments, "--json")
    (table,) = json.loads(out)["builds"]
    assert (table["capability"], table["shape"]) == ("SM89", [2, 16])
    assert table["fp16"]["bytes_moved"] > 0
    assert {row["operation"] for row in table["operations"]} == {site.operation for site in read_sites(file)}


@COMPILES
def test_a_refusal_names_the_node(tmp_path: Path) -> None:
    file = write_encoder(tmp_path / "model.onnx", Style(matmul="MatMulIntegerToFloat", names="nodes"))
    code, out, err = lint(file, "--target", "tensorrt", "--build", "--capability", "SM89")
    assert code == 1
    assert "breaks 1 rule of tensorrt" in out
    node = next(node for node in onnx.load(file).graph.node if node.op_type == "MatMulIntegerToFloat")
    assert err == (
        f"Error: TensorRT refuses {file}: node {node.name!r} (MatMulIntegerToFloat): "
        "it has no such operator.\n"
    )
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(EngineError, match=r"cannot compile .*text.onnx.* Failed to parse the ONNX model"):
        build(tmp_path / "text.onnx", "SM89")


@COMPILES
def test_a_refusal_does_not_speak_of_the_gpu_that_is_not_needed(tmp_path: Path) -> None:
    text = "agraph (float16[2] x, float[2] y) => (float[2] z) { z = Add(x, y) }"
    onnx.save(
        onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {text}'), tmp_path / "x.onnx"
    )
    with pytest.raises(EngineError, match="they are of types Half and Float") as refused:
        build(tmp_path / "x.onnx", "SM89")
    assert "CUDA" not in str(refused.value)


def test_what_cannot_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_encoder(tmp_path / "model.onnx", Style())
    with pytest.raises(ConfigError, match="no compute capability 'SM91'; TensorRT for RTX has SM75, "):
        build(file, "SM91")
    for arguments, message in (
        (("--target", "openvino", "--build"), "there is none for openvino"),
        (("--target", "tensorrt", "--capability", "SM89"), "add --build"),
        (("--target", "tensorrt", "--shape", "2x16"), "add --build"),
        (("--target", "tensorrt", "--build", "--capability", "SM91"), "'SM91' is not one of"),
    ):
        code, _, err = lint(file, *arguments)
        assert code == 2
        assert message in err
    monkeypatch.setattr(building, "PACKAGE", "tensorrt_that_is_not_there")
    code, _, err = lint(file, "--target", "tensorrt", "--build")
    assert code == 1
    assert err == f"Error: Compiling needs {building.PACKAGE}: pip install {building.PACKAGE}\n"


def test_a_crash_of_the_compiler_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "require", lambda _: None)
    monkeypatch.setattr(building.sys, "executable", "false")
    with pytest.raises(EngineError, match=r"crashed on .* exit code 1"):
        build(tmp_path / "model.onnx", "SM89")


def test_a_model_that_has_no_fp16_form(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    built = Build("SM89", "1.7", SHAPE, (), 0)
    (table,) = read_tables(tmp_path / "text.onnx", [built], [])
    assert table.half is None
    assert table.summary.endswith("the same model in fp16 does not compile.")
