"""What lint says of files of other makers is what the engines' own graphs say."""

import logging
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from encoders import FLOAT, Style, write_encoder, write_fused_encoder
from engine_graphs import linears_of_openvino, products_of_onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from qdqpatch.lint import check_file

PEERS = Path(__file__).parents[2] / ".peers"
ON_X64 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the rules are of x64")
FEED = {"input_ids": np.arange(32).reshape(2, 16) % 16, "mask": np.zeros((2, 1, 1, 16), np.float32)}
MATMULS = ("linear", "query x key", "probabilities x value")

Maker = Callable[[Path, Path], object]


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self.feeds = iter([FEED])

    def get_next(self) -> dict | None:
        return next(self.feeds, None)


def static(activations: str, weights: str, layout: str = "QDQ", **settings) -> Maker:
    """ONNX Runtime's quantize_static."""
    return lambda model, out: quantize_static(
        model,
        out,
        Reader(),
        quant_format=QuantFormat[layout],
        activation_type=QuantType[activations],
        weight_type=QuantType[weights],
        **settings,
    )


def dynamic(weights: str, **settings) -> Maker:
    """ONNX Runtime's quantize_dynamic."""
    return lambda model, out: quantize_dynamic(model, out, weight_type=QuantType[weights], **settings)


def few_bits(model: Path, out: Path) -> None:
    """ONNX Runtime's weights of 4 bits."""
    quantizer = MatMulNBitsQuantizer(onnx.load(model), block_size=32, is_symmetric=True)
    quantizer.process()
    onnx.save(quantizer.model.model, out)


def modelopt(mode: str, **settings) -> Maker:
    """NVIDIA's Model Optimizer, on the ONNX file."""

    def make(model: Path, out: Path) -> None:
        quantization = pytest.importorskip("modelopt.onnx.quantization")
        quantization.quantize(
            str(model),
            quantize_mode=mode,
            calibration_data=FEED,
            calibration_eps=["cpu"],
            output_path=str(out),
            log_level="ERROR",
            **settings,
        )

    return make


def nncf(model: Path, out: Path) -> None:
    """OpenVINO's NNCF, on the ONNX file."""
    tool = pytest.importorskip("nncf")
    kind = tool.ModelType.TRANSFORMER
    onnx.save(tool.quantize(onnx.load(model), tool.Dataset([FEED]), model_type=kind), out)


MAKERS: dict[str, Maker] = {
    "static, uint8 and int8": static("QUInt8", "QInt8", per_channel=True),
    "static, int8 and int8": static("QInt8", "QInt8"),
    "static, uint8 and uint8": static("QUInt8", "QUInt8"),
    "static, uint16 and int8": static("QUInt16", "QInt8"),
    "static, int16 and int16": static("QInt16", "QInt16"),
    "static, uint8 and int4": static("QUInt8", "QInt4"),
    "static, uint16 and uint4": static("QUInt16", "QUInt4"),
    "static, operators": static("QUInt8", "QInt8", "QOperator"),
    "static, operators of matmuls": static("QUInt8", "QUInt8", "QOperator", op_types_to_quantize=["MatMul"]),
    "dynamic, int8": dynamic("QInt8"),
    "dynamic, uint8": dynamic("QUInt8", per_channel=True),
    "weights of 4 bits": few_bits,
}
PEER_MAKERS: dict[str, Maker] = {
    "Model Optimizer, int8": modelopt("int8", calibration_method="max"),
    "Model Optimizer, int8 in fp32": modelopt("int8", calibration_method="max", high_precision_dtype="fp32"),
    "Model Optimizer, fp8": modelopt("fp8", calibration_method="max"),
    "NNCF": nncf,
}


def assert_lint_agrees(file: Path) -> None:
    """Hold lint's verdicts against both engines' own graphs."""
    report = check_file(file, "onnxruntime")
    products = [site for site in report.sites if site.operation in MATMULS]
    said = [any(finding.rule.effect != "slower" for finding in report.of(site)) for site in products]
    assert products_of_onnxruntime(file) == (said.count(False), said.count(True))
    report = check_file(file, "openvino")
    if any(finding.rule.effect == "refused" for finding in report.findings):
        with pytest.raises(RuntimeError):
            linears_of_openvino(file)
        return
    linears = [site for site in report.sites if site.operation == "linear"]
    said = [bool(report.of(site)) for site in linears]
    integers, left = linears_of_openvino(file)  # which may make one of query, key and value in float
    assert (integers, bool(left)) == (said.count(False), True in said)


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """One float layer, for any shape and for one alone."""
    folder = tmp_path_factory.mktemp("float")
    return {
        fixed: write_encoder(folder / f"{fixed}.onnx", Style(floats=FLOAT.floats, fixed=fixed))
        for fixed in (False, True)
    }


@pytest.fixture
def peers() -> Iterator[None]:
    """Let tools be imported from the folder that the benchmarks install them into."""
    sys.path.append(str(PEERS))
    levels = {name: logging.getLogger(name).level for name in ("nncf", "modelopt")}
    yield
    sys.path.remove(str(PEERS))
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@ON_X64
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("maker", MAKERS)
def test_files_of_onnxruntime(floats: dict[bool, Path], tmp_path: Path, maker: str, fixed: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        MAKERS[maker](floats[fixed], tmp_path / "model.onnx")
    assert_lint_agrees(tmp_path / "model.onnx")


@ON_X64
@pytest.mark.usefixtures("peers")
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("maker", PEER_MAKERS)
def test_files_of_peers(floats: dict[bool, Path], tmp_path: Path, maker: str, fixed: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PEER_MAKERS[maker](floats[fixed], tmp_path / "model.onnx")
    assert_lint_agrees(tmp_path / "model.onnx")


@ON_X64
@pytest.mark.parametrize(
    "style",
    [
        Style(dtype="float8e4m3fn", weight_dtype="float8e4m3fn"),
        Style(dtype="uint16", zero=0),
        Style(dtype="uint8", weight_dtype="int4"),
        Style(dtype="uint8", weight_dtype="uint8", weight_zero=128),
        Style(dtype="uint8", weight_zero=3),
        Style(dtype="uint8", half=True),
        Style(dtype="uint8", fixed=True),
        Style(dtype="int8", fixed=True),
        Style(dtype="uint8", second="int8", matmul="MatMulIntegerToFloat"),
        Style(floats=("query", "dense", "key.weight")),
    ],
)
def test_graphs_of_many_types(tmp_path: Path, style: Style) -> None:
    assert_lint_agrees(write_encoder(tmp_path / "model.onnx", style))


@ON_X64
@pytest.mark.parametrize("quantized", [False, True])
def test_operators_that_hold_an_attention(tmp_path: Path, quantized: bool) -> None:
    file = write_fused_encoder(tmp_path / "model.onnx", quantized)
    report = check_file(file, "onnxruntime")
    attention = [
        site for site in report.sites if site.op_type == ("QAttention" if quantized else "Attention")
    ]
    assert [(site.operation, bool(report.of(site))) for site in attention] == [
        ("linear", not quantized),
        ("query x key", True),
        ("probabilities x value", True),
    ]
    assert_lint_agrees(file)
