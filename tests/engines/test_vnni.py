"""The probe for processors whose products of uint8 and int8 saturate, and what `export` makes of it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import exported
import models
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from exports import calibrated, constant, export, made
from onnx import TensorProto, helper

from qdqpatch import QDQConfig
from qdqpatch.calibration.weights import recalibrate_weights
from qdqpatch.data.arrays import Array
from qdqpatch.engines.saturation import may_saturate
from qdqpatch.engines.sessions import ONNX_RUNTIME, OPENVINO, SATURATED
from qdqpatch.engines.vnni import saturates
from qdqpatch.errors import ExportError
from qdqpatch.exporter.check import LEAST_TOLERANCE
from qdqpatch.exporter.result import Export

NAME = "BertModel"


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Let the probe run anew, before and after."""
    saturates.cache_clear()
    yield
    saturates.cache_clear()


def product(a: Array, b: Array) -> Array:
    """Return ONNX Runtime's product of two matrices of integers."""
    types = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}
    inputs = [
        helper.make_tensor_value_info(name, types[matrix.dtype.name], matrix.shape)
        for name, matrix in (("a", a), ("b", b))
    ]
    output = helper.make_tensor_value_info("y", TensorProto.INT32, (len(a), b.shape[1]))
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["a", "b"], ["y"])], "g", inputs, [output])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"a": a, "b": b})[0]


@pytest.mark.parametrize("rows", [1, 7])
def test_the_probe_agrees_with_products_of_large_levels(rows: int) -> None:
    random = np.random.default_rng(0)
    a = random.integers(200, 256, (rows, 70)).astype(np.uint8)
    b = random.integers(100, 128, (70, 33)).astype(np.int8)
    exact = a.astype(int) @ b.astype(int)
    assert (product(a, b) == exact).all() == (not saturates())
    higher = (b.astype(int) + 128).astype(np.uint8)
    assert (product(a, higher) == a.astype(int) @ higher.astype(int)).all()  # on every processor


@pytest.mark.parametrize("package", ["onnx.parser", "onnxruntime"])
def test_nothing_is_known_without_the_packages(
    package: str, forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert not saturates()


def test_any_file_may_saturate_if_graphs_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported.write_onnx(tmp_path / "float.onnx")
    assert not may_saturate(tmp_path / "float.onnx")
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    assert may_saturate(tmp_path / "float.onnx")


def assume(answer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give `export` and the engines another answer of the probe."""
    for module in ("engines.sessions", "exporter.asked"):
        monkeypatch.setattr(f"qdqpatch.{module}.saturates", lambda: answer)


def linears_alone(folder: Path, target: str = "onnxruntime", **options: bool) -> Export:
    """Export a model whose int8 is in constants alone."""
    return export(calibrated(NAME, QDQConfig.preset("linear-only")), folder, target, **options)


@pytest.mark.slow
@pytest.mark.parametrize("answer", [False, True])
def test_the_default_is_what_the_probe_says(
    answer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assume(answer, monkeypatch)
    weights = ir.load(linears_alone(tmp_path / "out", check=False).file).graph.initializers
    stored = constant(weights["encoder.layer.0.output.dense.weight_quantized"])
    assert stored.dtype == (np.uint8 if answer else np.int8)


@pytest.mark.slow
def test_a_file_for_onnx_runtime_is_compared_as_its_users_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong_here = saturates()
    assume(False, monkeypatch)
    if wrong_here:
        with pytest.raises(ExportError, match="The file does not compute what the model does"):
            linears_alone(tmp_path / "out")
    else:
        assert linears_alone(tmp_path / "out").comparisons


def test_what_cannot_be_compared_here_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assume(True, monkeypatch)
    message = (
        r"^This processor has no VNNI: .* cannot be compared with the model here\. Leave vnni out .*, or "
        r"export unchecked: check=False\.$"
    )
    with pytest.raises(ExportError, match=message):
        export(models.calibrated(), tmp_path / "out", vnni=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_openvino_is_compared_without_kernels_that_saturate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assume(True, monkeypatch)
    result = linears_alone(tmp_path / "out", "openvino")
    assert result.float_matmuls
    # What the check takes without asking how far the model is from itself: kernels round ties otherwise.
    assert all(comparison.mean <= LEAST_TOLERANCE for comparison in result.comparisons)
    assert any(operation.integer for operation in result.operations)  # which its users get
    assert not OPENVINO.load(result.file).float_matmuls
    assume(False, monkeypatch)
    assert not OPENVINO.load(result.file, exact=True).float_matmuls


def test_nobody_is_asked_of_products_before_it_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe takes ONNX Runtime, whose memory would count as OpenVINO's where that is measured."""

    file = made("Linears alone", "openvino").result.file

    def probe() -> bool:
        raise AssertionError("It was asked.")

    monkeypatch.setattr("qdqpatch.engines.sessions.saturates", probe)
    session = OPENVINO.load(file, threads=1)
    with pytest.raises(AssertionError, match="asked"):
        assert session.saturated


@pytest.mark.parametrize("wrong", [True, False])
def test_whoever_measures_in_openvino_is_told(wrong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdqpatch.engines.sessions.saturates", lambda: wrong)
    file = made("Linears alone", "openvino").result.file
    for exact in (False, True):
        session = OPENVINO.load(file, threads=1, exact=exact)
        assert session.saturated == (wrong and not exact)
        assert (SATURATED in (session.note or "")) == session.saturated


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "wrong"), [("linear-only", False), ("no-residual", True)])
def test_in_openvino_pairs_make_linears_exact_and_attention_is_not(
    preset: str, wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = recalibrate_weights(calibrated(NAME, QDQConfig.preset(preset)), "pairs")
    assume(True, monkeypatch)
    result = export(model, tmp_path / "out", "openvino")
    assert result.float_matmuls == wrong
    assert OPENVINO.load(result.file).saturated == wrong
    assert not OPENVINO.load(result.file, exact=True).saturated


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["qdqbert", "linear-only"])
@pytest.mark.parametrize("form", ["for VNNI", "without", "pairs"])
def test_whoever_measures_a_file_for_vnni_in_onnx_runtime_is_told(
    form: str, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = calibrated(NAME, QDQConfig.preset(preset))
    vnni = form == "for VNNI"
    if form == "pairs":
        recalibrate_weights(model, "pairs")
    file = export(model, tmp_path / "out", "onnxruntime", vnni=vnni, check=False).file
    weight = ir.load(file).graph.initializers["encoder.layer.0.output.dense.weight_quantized"]
    assert constant(weight).dtype == (np.uint8 if form == "without" else np.int8)
    for wrong in (True, False):
        monkeypatch.setattr("qdqpatch.engines.sessions.saturates", lambda wrong=wrong: wrong)
        for exact in (True, False):
            session = ONNX_RUNTIME.load(file, threads=1, exact=exact)
            assert session.saturated == (vnni and wrong and not exact)
            assert (SATURATED in (session.note or "")) == session.saturated
