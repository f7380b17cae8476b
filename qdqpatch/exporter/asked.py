"""What the arguments of `export` say: target, shape, the type of what stays float; or a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from qdqpatch.choices import CPUS, OPSETS, WeightMethod
from qdqpatch.engines.shapes import Shape
from qdqpatch.engines.vnni import saturates
from qdqpatch.errors import ExportError, QuantizedError
from qdqpatch.exporter.options import DEFAULTS, ExportOptions
from qdqpatch.patching.apply import is_quantized
from qdqpatch.spelling import spelled

if TYPE_CHECKING:  # these need packages that are not always installed
    from qdqpatch.exporter.precision import Precision
    from qdqpatch.exporter.targets.base import Target


OPTIONS_OF = {
    "onnxruntime": ("cpu", "vnni", "triton"),
    "openvino": ("cpu",),
    "tensorrt": ("float_weights", "dtype", "int32_inputs", "float32_outputs", "build"),
}
"""The options of `export` that not every target takes."""


def are_exact(target: str, cpu: str | None, vnni: bool | None) -> bool | None:
    """Return whether products of uint8 and int8 are exact where a file will run; None for as here.

    Raises:
        ExportError: If there is no such processor, or it contradicts `vnni` or the target.
    """
    if cpu is None:
        return vnni
    if cpu not in CPUS:
        raise ExportError(f"There is no {spelled('cpu')} {cpu!r}; there are {', '.join(CPUS)}.")
    if target == "tensorrt":
        raise ExportError(
            f"{spelled('cpu')} is for onnxruntime and openvino; TensorRT runs on NVIDIA's GPUs."
        )
    exact = cpu != "avx2"
    if vnni not in (None, exact):
        raise ExportError(
            f"{spelled('cpu')} {cpu} and {spelled(f'vnni={vnni}', '--vnni')} contradict each other; leave "
            "the second one out."
        )
    return exact if target == "onnxruntime" else None


def check_together(targets: Sequence[str]) -> None:
    """Find out whether one folder can have the files of these targets.

    Raises:
        ExportError: If there is no target, one is there twice, or two of them have the same file.
    """
    if not targets or len({*targets}) < len(targets):
        raise ExportError(f"Name one target or several, none of them twice, not {list(targets)}.")
    if {"onnxruntime", "tensorrt"} <= {*targets}:
        raise ExportError(
            "onnxruntime and tensorrt both write onnx/model.onnx: leave one out, and write it to another "
            "folder."
        )


def of_several(options: ExportOptions, target: str, targets: Sequence[str]) -> ExportOptions:
    """Return the options without those that are for another one of the targets.

    What is for none of them stays, and is refused.
    """
    others = {*targets} - {target}
    foreign = {name for other in others for name in OPTIONS_OF[other] if name not in OPTIONS_OF[target]}
    return replace(options, **{name: getattr(DEFAULTS, name) for name in foreign})


def weight_method_for(target: str, cpu: str | None) -> WeightMethod:
    """Return how the ranges of weights are chosen for a file: `"pairs"` where products saturate.

    Args:
        target: The engine.
        cpu: What will run the file, one of `CPUS`; None for this machine.
    """
    if target == "tensorrt":
        return "max"
    saturating = saturates() if cpu is None else cpu == "avx2"
    return "pairs" if saturating else "max"


def check_is_float(model: PreTrainedModel, float_weights: bool, int8_embeddings: bool) -> None:
    """Find out whether a model can be written as a float one.

    Raises:
        ExportError: If something of it shall be in int8.
        QuantizedError: If it is quantized.
    """
    way = spelled("as_float", "--float")
    if float_weights or int8_embeddings:
        raise ExportError(
            f"{way} writes everything in float: leave {spelled('float_weights')} and "
            f"{spelled('int8_embeddings')} out."
        )
    if is_quantized(model):
        raise QuantizedError(f"The model is quantized: {way} is for the float one that it was made of.")


def target_of(
    name: str, float_weights: bool, vnni: bool | None, check: bool, cpu: str | None = None
) -> Target:
    """Return the target; arguments and errors as of `export`."""
    if float_weights and name != "tensorrt":
        raise ExportError(
            f"{name} needs the weights in int8; {spelled('float_weights')} is for TensorRT alone."
        )
    if vnni is not None and name != "onnxruntime":
        raise ExportError(
            f"{name} gets the same file for every processor; {spelled('vnni')} is for onnxruntime alone."
        )
    if name == "openvino":
        from qdqpatch.exporter.targets import openvino

        return replace(openvino.TARGET, cpu=cpu)
    if name == "onnxruntime":
        from qdqpatch.exporter.targets import onnxruntime

        if vnni and check and saturates():
            raise ExportError(
                "This processor has no VNNI: its products of uint8 and int8 saturate, so that a file for "
                f"processors with VNNI cannot be compared with the model here. Leave {spelled('vnni')} out "
                "for a file that is exact on every processor, or export unchecked: "
                f"{spelled('check=False', '--no-check')}."
            )
        return onnxruntime.target(not saturates() if vnni is None else vnni, cpu)
    from qdqpatch.exporter.targets import tensorrt

    return tensorrt.target(float_weights)


def fixed_shape(shape: object) -> Shape | None:
    """Return the only shape that a file shall take; None for any."""
    if shape is None:
        return None
    if not isinstance(shape, tuple | list) or [type(size) for size in shape] != [int, int]:
        raise ExportError(f"shape is a batch and a length, such as (1, 128), not {shape!r}.")
    return Shape(*shape)


def precision_of(target: str, dtype: str | None, opset: int | None, float8: bool) -> Precision:
    """Return the type of what stays float; arguments and errors as of `export`."""
    from qdqpatch.exporter.precision import OPSET, PRECISIONS

    if opset is not None and not OPSETS[0] <= opset <= OPSETS[1]:
        raise ExportError(f"opset must be from {OPSETS[0]} to {OPSETS[1]}, not {opset}.")
    name = dtype or ("float16" if target == "tensorrt" else "float32")
    if name not in PRECISIONS:
        raise ExportError(f"There is no dtype {name!r}; there are {', '.join(PRECISIONS)}.")
    if target != "tensorrt" and name != "float32":
        raise ExportError(f"{spelled('dtype')} is for TensorRT; {target} gets what stays float in float32.")
    if opset is not None and opset < OPSET and float8:
        raise ExportError(f"FP8 needs opset {OPSET} or newer, not {opset}.")
    if opset is not None and opset < OPSET and name != "float32":
        raise ExportError(f"{name} needs opset {OPSET} or newer, not {opset}; float32 does not.")
    return PRECISIONS[name]


def check_build(target: str, capabilities: Sequence[str], float8: bool) -> None:
    """Refuse to compile what cannot be compiled."""
    if not capabilities:
        return
    if target != "tensorrt":
        raise ExportError(
            f"{spelled('build')} compiles for TensorRT; there is nothing to compile for {target}."
        )
    from qdqpatch.engines.tensorrt.build import require

    require(capabilities, float8)
