"""Other tools that make an int8 BERT of a float one, each with the settings that ran fastest here.

They are not among what qdqpatch needs. `make benchmark` installs them into a folder of their own
(`benchmarks/peers.txt`); one that is missing is left out, and the benchmark says so.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import quiet
from transformers import PreTrainedModel

FOLDER = Path(__file__).resolve().parents[1] / ".peers"
"""Where `make benchmark` installs them."""

Feed = dict[str, npt.NDArray[np.int64]]


def static(model: Path, out: Path, feed: Feed) -> Path:
    """ONNX Runtime's `quantize_static`: Q/DQ around the Linears, uint8 and int8 per channel."""
    options = {"MatMulConstBOnly": True, "QDQDisableWeightAdjustForInt32Bias": True}
    return _static(model, out, feed, "QUInt8", ["MatMul", "Gemm"], options)


def symmetric(model: Path, out: Path, feed: Feed) -> Path:
    """The same with what TensorRT reads: int8 with zero points of 0, without int32 biases."""
    options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    return _static(model, out, feed, "QInt8", ["MatMul", "Gemm", "Add"], options)


def dynamic(model: Path, out: Path, feed: Feed) -> Path:
    """ONNX Runtime's `quantize_dynamic`: ranges from each tensor, int8 weights per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(_preprocessed(model)),
        str(out),
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
    )
    return out


def modelopt(model: Path, out: Path, feed: Feed) -> Path:
    """NVIDIA's Model Optimizer on the ONNX file, calibrated by maximum."""
    from modelopt.onnx.quantization import quantize

    quantize(
        str(model),
        quantize_mode="int8",
        calibration_data=feed,
        calibration_method="max",
        calibration_eps=["cpu"],
        output_path=str(out),
        log_level="ERROR",
    )
    return out


def nncf(model: Path, out: Path, feed: Feed) -> Path:
    """Intel's NNCF with its preset for transformers, as OpenVINO IR."""
    import nncf
    import openvino

    quantized = nncf.quantize(
        openvino.convert_model(model), nncf.Dataset([feed]), model_type=nncf.ModelType.TRANSFORMER
    )
    out = out.with_suffix(".xml")
    openvino.save_model(quantized, out, compress_to_fp16=False)
    return out


Make = Callable[[Path, Path, Feed], Path]

ONNX_RUNTIME: dict[str, tuple[str, Make]] = {
    "quantize_static": ("onnxruntime", static),
    "quantize_dynamic": ("onnxruntime", dynamic),
    "ModelOpt": ("modelopt", modelopt),
}
"""Name of each tool for ONNX Runtime, the module that it needs, and how it makes its file."""

TENSORRT: dict[str, tuple[str, Make]] = {
    "quantize_static, symmetric int8": ("onnxruntime", symmetric),
    "ModelOpt, ONNX": ("modelopt", modelopt),
}
"""The same for TensorRT."""

OPENVINO: dict[str, tuple[str, Make]] = {"NNCF": ("nncf", nncf)}
"""The same for OpenVINO."""


def from_torch(model: PreTrainedModel) -> dict[str, tuple[str, Make]]:
    """Return the tools for TensorRT that quantize the torch model itself, and not its file."""

    def modelopt_torch(_: Path, out: Path, feed: Feed) -> Path:
        """NVIDIA's Model Optimizer with its int8 default, calibrated by maximum; the rest is fp16.

        Its own conversion to fp16, `weights_dtype="fp16"` of `get_onnx_bytes_and_metadata`, writes files that
        TensorRT for RTX 1.7 refuses: an Add of fp16 and fp32. So the model is cast before it is quantized.
        With attention as `sdpa` that cannot be exported.
        """
        import modelopt.torch.quantization as mtq

        half = copy.deepcopy(model).half()
        batch = {name: torch.from_numpy(ids) for name, ids in feed.items()}
        half.set_attn_implementation("eager")
        quantized = mtq.quantize(half, mtq.INT8_DEFAULT_CFG, lambda model: model(**batch))
        mtq.set_quantizer_attributes_partial(quantized, "*", {"trt_high_precision_dtype": "Half"})
        with torch.inference_mode():
            torch.onnx.export(
                _ByPosition(quantized, list(batch)),
                tuple(batch.values()),
                str(out),
                input_names=list(batch),
                dynamic_axes={name: {0: "batch", 1: "sequence"} for name in batch},
                opset_version=20,
                dynamo=False,
            )
        return out

    return {"ModelOpt, torch": ("modelopt", modelopt_torch)}


class _ByPosition(torch.nn.Module):
    """A model whose inputs are given in an order, as torch's older exporter does."""

    def __init__(self, model: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return the model's first output."""
        first: torch.Tensor = self.model(**dict(zip(self.names, inputs, strict=True)))[0]
        return first


def make(tools: dict[str, tuple[str, Make]], model: Path, feed: Feed) -> Iterator[tuple[str, Path]]:
    """Yield the name and the file of every tool that is installed."""
    if FOLDER.is_dir() and str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    for name, (module, tool) in tools.items():
        if importlib.util.find_spec(module) is None:
            print(f"{name} is not installed and left out; see benchmarks/peers.txt")
            continue
        with quiet():
            file = tool(model, model.with_name(f"{tool.__name__}.onnx"), feed)
        yield name, file


def _static(
    model: Path, out: Path, feed: Feed, activations: str, operators: list[str], options: dict[str, bool]
) -> Path:
    """Write what `quantize_static` makes, calibrated with one batch.

    Args:
        model: The float file.
        out: The file to write.
        feed: The batch.
        activations: Their `QuantType`.
        operators: Those that are quantized.
        options: Its `extra_options`.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # published without types
        def __init__(self) -> None:
            self._feeds = iter([feed])

        def get_next(self) -> Any:
            return next(self._feeds, None)

    quantize_static(
        str(_preprocessed(model)),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType[activations],
        weight_type=QuantType.QInt8,
        op_types_to_quantize=operators,
        extra_options=options,
    )
    return out


def _preprocessed(model: Path) -> Path:
    """Return the graph as ONNX Runtime's tools want it, made once."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    out = model.with_name("preprocessed.onnx")
    if not out.exists():
        quant_pre_process(str(model), str(out), skip_symbolic_shape=True)
    return out
