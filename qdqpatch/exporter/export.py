"""`export`: what can be refused without work is refused here; the work is in `pipeline.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch.calibration.batching import as_tensors
from qdqpatch.calibration.texts import check_tokenizer
from qdqpatch.checkpoint.companions import companions_of, read_companions
from qdqpatch.checkpoint.sentence_head import load_sentence_head
from qdqpatch.choices import TARGETS, Cpu
from qdqpatch.errors import ExportError
from qdqpatch.exporter.asked import (
    are_exact,
    check_build,
    check_is_float,
    check_together,
    fixed_shape,
    of_several,
    precision_of,
    target_of,
)
from qdqpatch.exporter.held import held
from qdqpatch.exporter.options import DEFAULTS, ExportOptions
from qdqpatch.nn.names import is_weight
from qdqpatch.output.folder import OutputFolder
from qdqpatch.packages import require
from qdqpatch.patching.apply import check_have_ranges, check_whole, enabled_quantizers
from qdqpatch.patching.finite import check_finite
from qdqpatch.spelling import spelled

if TYPE_CHECKING:  # these need packages that are not always installed
    from qdqpatch.exporter.result import Export
    from qdqpatch.exporter.tracing import Traces

PACKAGES = ("onnx", "onnx_ir", "onnxscript")


def export(
    model: nn.Module,
    out: str | Path,
    target: str | list[str] | tuple[str, ...] = "onnxruntime",
    *,
    shape: tuple[int, int] | None = None,
    float_weights: bool = False,
    cpu: Cpu | None = None,
    vnni: bool | None = None,
    as_float: bool = False,
    int8_embeddings: bool = False,
    dtype: str | None = None,
    int32_inputs: bool = False,
    float32_outputs: bool = False,
    opset: int | None = None,
    check: bool = True,
    batches: Iterable[dict[str, Tensor]] | None = None,
    tokenizer: Any = None,
    source: str | Path | None = None,
    force: bool = False,
    triton: bool = False,
    build: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> Export:
    """Write a calibrated model for the engine that will run it.

    The numbers are the same for every engine; the graph is what each one needs to run integer kernels. The
    file is run in the target's own engine where that is installed (TensorRT's in ONNX Runtime), on batches
    of several shapes, and compared with the model, before anything is kept. On x86 without VNNI, OpenVINO's
    integer kernels saturate: there its file is compared with products in fp32 in their place.

    Args:
        model: A quantized model with a range on every enabled quantizer; or a `SentenceTransformer` or
            `CrossEncoder` with one inside, whose pooling and files go along. It is not changed.
        out: The folder to write, as servers expect it: `onnx/model.onnx`, and the same file as
            `onnx/model_quantized.onnx`, or for OpenVINO `openvino/openvino_model.xml` and `.bin`; with
            `config.json`, the tokenizer and `export.json`, which transformers' `ExportedModel` reads. More
            than 1.8 GB of weights go into `onnx/model.onnx_data`.
        target: `tensorrt`, `onnxruntime` or `openvino`; or several, all of which the folder then has a file
            for. The names of those for TensorRT and ONNX Runtime are the same, so not for both.
        shape: Batch and sequence length, if the file shall take no other; None for any.
        float_weights: For TensorRT: store the weights in fp32 and quantize them in the graph.
        cpu: What will run the file: `vnni` (x86 with VNNI), `avx2` (x86 without) or `arm`. For ONNX Runtime
            keys, values and weights with large pairs of levels (`qdqpatch/nn/pairs.py`) are uint8 for
            `avx2`: the same levels, exact on every processor, but slower where products of uint8 and int8
            are. OpenVINO's file is the same for all. None for this machine.
        vnni: The same for ONNX Runtime: whether products of uint8 and int8 are exact where the file runs, as
            they are with VNNI and on Arm.
        as_float: Write a model that is not quantized, such as the float one to compare an int8 file with.
        int8_embeddings: Store the embeddings' tables in int8 too, with a range for each row. Numbers change
            by that; those of a model whose `QDQConfig` has `embeddings=True` are stored so anyway.
        dtype: For TensorRT: the type of what stays float, scales included: `float16` (the default),
            `bfloat16` or `float32`. TensorRT computes in the types of the file. The others get `float32`.
        int32_inputs: Whether the file takes token ids, mask and segments as int32 instead of int64.
        float32_outputs: Whether the file gives fp32 where `dtype` is another.
        opset: Version of ONNX's operators; None for what the target does best.
        check: Whether to run and compare the file.
        batches: Keyword arguments of `forward` to compare on; None for sentences of several lengths, or
            random tokens where there is no tokenizer.
        tokenizer: Saved beside the model.
        source: The folder or hub name whose companion files go along: tokenizer, and what
            sentence-transformers needs. If it pools, the file has an output `sentence_embedding` too. None
            for the local folder that the model was loaded from, if sentence-transformers wrote it.
        force: Whether `out` may be replaced if it holds an earlier export; a folder with other files may not.
        triton: For ONNX Runtime: whether to make the folder a model of Triton Inference Server, by a
            `config.pbtxt` and a link to the file in the folder `1`.
        build: For TensorRT: compute capabilities, such as `SM89`, to compile the file for. TensorRT for RTX
            has to be installed for that, and needs no GPU. A file that it refuses is not kept.
        progress: Called with what begins.

    Returns:
        What was written, how each matmul is computed and how far the outputs are from the model's.
        Of several targets that of the first, with the others in `also`.

    Raises:
        NotQuantizedError: If the model has no enabled quantizer, and `as_float` is not set.
        QuantizedError: If it has one, and `as_float` is set.
        ExportError: If a range is missing, a weight is NaN or infinite, the target cannot have what was asked
            for, or the file does something else than the model. Nothing is left behind.
        DataError: If the model does not take what `batches` holds, or the tokenizer is only a name.
        CheckpointError: If the folder cannot be written.
    """
    check_tokenizer(tokenizer)
    with held(model, source, tokenizer) as (inner, folder_of_it, its_tokenizer):
        options = ExportOptions(
            shape=shape,
            float_weights=float_weights,
            cpu=cpu,
            vnni=vnni,
            as_float=as_float,
            int8_embeddings=int8_embeddings,
            dtype=dtype,
            int32_inputs=int32_inputs,
            float32_outputs=float32_outputs,
            opset=opset,
            check=check,
            batches=None if batches is None else _listed(batches, inner),
            tokenizer=its_tokenizer,
            source=folder_of_it,
            triton=triton,
            build=build,
            progress=progress,
        )
        targets = target if isinstance(target, list | tuple) else [target]
        check_together(targets)
        writers = prepare_exports(inner, targets, options)
        read = [getattr(inner, "name_or_path", None) or "", source or ""]
        output = OutputFolder.open(out, {"the checkpoint": read}, force)
        with output.staged() as folder:
            first, *others = (write(folder, output.given) for write in writers)
        return replace(first, also=tuple(others))


def prepare_export(
    model: PreTrainedModel,
    target: str,
    options: ExportOptions = DEFAULTS,
    traces: Traces | None = None,
) -> Callable[[Path, Path], Export]:
    """Refuse what can be refused without work, and return what does the rest.

    Args:
        model: A quantized model, or a float one.
        target: As `export` takes it; errors are those of `export` too.
        options: What else is asked for.
        traces: What was traced of the model already.

    Returns:
        A function of a folder to write to, whose other files stay, and of the place that this folder gets in
        the end.
    """
    require_packages(target, options.check)
    from qdqpatch.exporter.grids import has_float8
    from qdqpatch.exporter.inputs import Inputs
    from qdqpatch.exporter.pipeline import Pipeline
    from qdqpatch.exporter.preparing import prepared
    from qdqpatch.exporter.tracing import Traces

    exact = are_exact(target, options.cpu, options.vnni)
    engine_target = target_of(target, options.float_weights, exact, options.check, options.cpu)
    float8 = has_float8(model)
    check_build(target, options.build, float8)
    if options.triton and target != "onnxruntime":
        raise ExportError(f"A model of Triton's is written for onnxruntime, not for {target}.")
    precision = precision_of(target, options.dtype, options.opset, float8)
    if target != "tensorrt" and (options.int32_inputs or options.float32_outputs):
        raise ExportError(
            f"{spelled('int32_inputs')} and {spelled('float32_outputs')} are for TensorRT, not for {target}."
        )
    if options.as_float:
        check_is_float(model, options.float_weights, options.int8_embeddings)
    else:
        check_whole(model)
        _check_ranges(model)
    check_finite(model, f"This {type(model).__name__}", "Nothing was written.", ExportError)
    inputs = Inputs(model, fixed_shape(options.shape))
    inputs.check()
    source = options.source
    companions = companions_of(model) if source is None else read_companions(str(source))
    head = None
    if companions is not None and type(model).__name__.endswith("Model"):
        head = load_sentence_head(companions)
    traced = Traces() if traces is None else traces

    def write(folder: Path, out: Path) -> Export:
        with prepared(model, options.int8_embeddings) as cpu_model:
            pipeline = Pipeline(
                cpu_model, engine_target, inputs, options, precision, companions, head, traced
            )
            return pipeline.run(folder, out)

    return write


def require_packages(target: str, check: bool = True, otherwise: str = "") -> None:
    """Find out before the work whether everything is installed that exporting for a target needs.

    Args:
        target: As `export` takes it.
        check: Whether the file is to be run.
        otherwise: What can be done where it cannot be run; empty for leaving that out.

    Raises:
        ExportError: If not, or there is no such target.
    """
    if target not in TARGETS:
        raise ExportError(f"There is no target {target!r}; there are {', '.join(TARGETS)}.")
    require("Exporting", *PACKAGES, *["openvino"] * (target == "openvino"), error=ExportError)
    if not hasattr(torch.onnx, "ops"):
        raise ExportError(f"Exporting needs torch 2.8 or newer; this is {torch.__version__}.")
    if check and target != "openvino":
        way = otherwise or f"leave that out: {spelled('check=False', '--no-check')}"
        require("Comparing the file with the model", "onnxruntime", error=ExportError, otherwise=way)


def check_placement(model: PreTrainedModel, target: str) -> None:
    """Find out before a model is calibrated whether a target has the levels of its quantizers.

    Raises:
        ExportError: If not.
    """
    from qdqpatch.exporter.grids import check_grids

    engine_target = target_of(target, float_weights=False, vnni=None, check=False)
    check_grids(model, engine_target.signed, engine_target.float8, target, calibrated=False)


def prepare_exports(
    model: PreTrainedModel, targets: Sequence[str], options: ExportOptions = DEFAULTS
) -> list[Callable[[Path, Path], Export]]:
    """Prepare exports for one target or several, which share what is traced.

    Errors are those of `prepare_export`, and so is what is returned for each target. Of several, each gets
    the options that are for it.
    """
    for target in targets:
        require_packages(target, options.check)
    from qdqpatch.exporter.tracing import Traces

    traces = Traces()
    return [prepare_export(model, target, of_several(options, target, targets), traces) for target in targets]


def _listed(batches: Iterable[Mapping[str, Any]], model: PreTrainedModel) -> list[dict[str, Tensor]]:
    """Return the batches to compare on, each found to be one that the model takes."""
    found = [dict(batch) for batch in as_tensors(batches, model)]
    if not found:
        raise ExportError("There is no batch to compare on. An iterator can be used only once.")
    return found


def _check_ranges(model: PreTrainedModel) -> None:
    quantizers = enabled_quantizers(model)
    activations = {path: quantizer for path, quantizer in quantizers.items() if not is_weight(path)}
    check_have_ranges(activations, ExportError)
