"""`export`: trace, rewrite for the target, write, run in the target's engine, compare, and only then keep."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qdqpatch.checkpoint.staging import check_output, staged
from qdqpatch.errors import EngineError, ExportError
from qdqpatch.patch import enabled_quantizers
from qdqpatch.shapes import Shape

if TYPE_CHECKING:  # these need the packages of qdqpatch[export]
    from qdqpatch.exporter.result import Export
    from qdqpatch.exporter.targets.base import Target

TARGETS = ("tensorrt", "onnxruntime", "openvino")
PACKAGES = ("onnx", "onnx_ir", "onnxscript")


def export(
    model: PreTrainedModel,
    out: str | Path,
    target: str = "onnxruntime",
    *,
    shape: tuple[int, int] | None = None,
    float_weights: bool = False,
    int8_embeddings: bool = False,
    opset: int | None = None,
    check: bool = True,
    batches: Iterable[dict[str, Tensor]] | None = None,
    tokenizer: Any = None,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Export:
    """Write a calibrated model for the engine that will run it.

    The numbers are the same for every engine; the graph is what each one needs to run integer kernels. The
    file is run in the target's own engine where that is installed (TensorRT's in ONNX Runtime), on batches
    of several shapes, and compared with the model, before anything is kept.

    Args:
        model: A quantized model with a range on every enabled quantizer. It is not changed.
        out: The folder to write: `model.onnx` (with `model.onnx.data`), or for OpenVINO
            `openvino_model.xml` and `.bin`; `config.json` and the tokenizer beside it.
        target: `tensorrt`, `onnxruntime` or `openvino`.
        shape: Batch and sequence length, if the file shall take no other; None for any.
        float_weights: For TensorRT: store the weights in fp32 and quantize them in the graph.
        int8_embeddings: Store the embeddings' tables in int8 too, with a range for each row. Numbers change
            by that; those of a model whose `QDQConfig` has `embeddings=True` are stored so anyway.
        opset: Version of ONNX's operators; None for what the target does best.
        check: Whether to run and compare the file.
        batches: Keyword arguments of `forward` to compare on; None for sentences of several lengths, or
            random tokens where there is no tokenizer.
        tokenizer: Saved beside the model.
        force: Whether a folder with files in it may be replaced.
        progress: Called with what begins.

    Returns:
        What was written, how each matmul is computed and how far the outputs are from the model's.

    Raises:
        NotQuantizedError: If the model has no enabled quantizer.
        ExportError: If a range is missing, the target cannot have what was asked for, or the file does
            something else than the model. Nothing is left behind.
        CheckpointError: If the folder cannot be written.
    """
    say = progress or (lambda _: None)
    _require(PACKAGES)
    if not hasattr(torch.onnx, "ops"):
        raise ExportError(f"Exporting needs torch 2.8 or newer; this is {torch.__version__}.")
    from qdqpatch.exporter.grids import check_grids
    from qdqpatch.exporter.inputs import Inputs
    from qdqpatch.exporter.operations import matmuls
    from qdqpatch.exporter.preparing import prepared

    engine_target = _target(target, float_weights)
    enabled_quantizers(model)
    _check_ranges(model)
    check_grids(model, engine_target.signed)
    inputs = Inputs(model, None if shape is None else Shape(*shape))
    inputs.check()
    out = Path(out)
    check_output(out, None, force)
    with prepared(model, int8_embeddings) as cpu_model:
        say("Tracing the model")
        graph = _rewritten(cpu_model, inputs, engine_target, opset)
        with staged(out) as folder:
            say(f"Writing {engine_target.file}")
            engine_target.write(graph, folder)
            names = matmuls(graph.graph)
            del graph
            cpu_model.config.save_pretrained(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            return _checked(
                cpu_model, inputs, engine_target, names, folder, out, check, batches, tokenizer, say
            )


def _checked(
    model: PreTrainedModel,
    inputs: Any,
    target: Target,
    names: dict[str, set[str]],
    folder: Path,
    out: Path,
    check: bool,
    batches: Iterable[dict[str, Tensor]] | None,
    tokenizer: Any,
    say: Callable[[str], None],
) -> Export:
    from qdqpatch.engines import ONNX_RUNTIME
    from qdqpatch.exporter.check import compare, own_noise, require_equal
    from qdqpatch.exporter.operations import match
    from qdqpatch.exporter.result import Export
    from qdqpatch.exporter.tracing import outputs_of

    engine = target.engine or ONNX_RUNTIME
    file, comparisons, operations = folder / target.file, None, None
    size = sum(
        each.stat().st_size for each in folder.iterdir() if each.name.startswith(Path(target.file).stem)
    )
    if check and engine.version is not None:
        say(f"Comparing with the model in {engine.name}")
        reference = outputs_of(model)
        try:
            session = engine.load(file, exact=True)
        except EngineError as error:
            reason = str(error).replace(str(folder), str(out))
            raise ExportError(f"The engine refuses the file, and nothing was written: {reason}") from error
        kept = list(inputs.batches(tokenizer) if batches is None else batches)
        comparisons = compare(reference, session.run_tensors, kept)
        del session
        require_equal(comparisons, lambda: own_noise(model, reference, kept))
    if target.kernels is not None and engine.version is not None:
        say("Counting integer kernels")
        operations = match(model, names, target.kernels(file))
    ran = f"{engine.name} {engine.version}" if comparisons is not None else None
    return Export(out, out / target.file, target.name, size, operations, comparisons, ran)


def _rewritten(model: PreTrainedModel, inputs: Any, target: Target, opset: int | None) -> Any:
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    from qdqpatch.exporter.graph import Rewriter
    from qdqpatch.exporter.operations import name_after_modules
    from qdqpatch.exporter.operators import DOMAIN
    from qdqpatch.exporter.rules.base import apply
    from qdqpatch.exporter.tracing import trace

    # Two of everything: a trace takes an axis of 1 for one that is always 1.
    example = inputs.batch(inputs.fixed or Shape(2, 8))
    graph = trace(model, example, inputs.axes(), target.opset if opset is None else opset)
    rewriter = Rewriter(graph, model)
    for rules in target.passes:
        apply(rewriter, *rules)
    RemoveUnusedNodesPass()(graph)
    graph.opset_imports.pop(DOMAIN, None)
    graph.opset_imports.update(target.domains)
    name_after_modules(graph.graph)
    graph.producer_name = "qdqpatch"
    return graph


def _target(name: str, float_weights: bool) -> Target:
    if name not in TARGETS:
        raise ExportError(f"There is no target {name!r}; there are {', '.join(TARGETS)}.")
    if float_weights and name != "tensorrt":
        raise ExportError(f"{name} needs the weights in int8; float_weights is for TensorRT alone.")
    if name == "openvino":
        _require(("openvino",))
        from qdqpatch.exporter.targets import openvino

        return openvino.TARGET
    if name == "onnxruntime":
        from qdqpatch.exporter.targets import onnxruntime

        return onnxruntime.TARGET
    from qdqpatch.exporter.targets import tensorrt

    return tensorrt.target(float_weights)


def _require(packages: Iterable[str]) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ExportError(
            f'Exporting needs the packages {", ".join(missing)}: pip install "qdqpatch[export]"'
        )


def _check_ranges(model: PreTrainedModel) -> None:
    without = [
        path
        for path, quantizer in enabled_quantizers(model).items()
        if quantizer.amax is None and not path.endswith("_weight_quantizer")
    ]
    if without:
        raise ExportError(
            f"{len(without)} quantizers have no range, the first one {without[0]}. Calibrate the model "
            "before it is exported: qdqpatch.calibrate(model, batches), or qdqpatch convert --calib FILE."
        )
