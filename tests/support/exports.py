"""Exported tiny models, each made once, and single operators of a trace to try rules on."""

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import nn
from traces import all_traces
from transformers import PreTrainedModel

import qdqpatch
from qdqpatch import QDQConfig, QuantizerConfig
from qdqpatch.data.arrays import Array
from qdqpatch.engines.sessions import ONNX_RUNTIME, Session
from qdqpatch.engines.vnni import saturates
from qdqpatch.exporter.export import prepare_export
from qdqpatch.exporter.graph import Rewriter
from qdqpatch.exporter.options import ExportOptions
from qdqpatch.exporter.result import Export
from qdqpatch.exporter.rules.base import RewriteRule, apply
from qdqpatch.exporter.symbolic_operators import DOMAIN
from qdqpatch.output.folder import OutputFolder

_FOLDER = tempfile.TemporaryDirectory(prefix="qdqpatch-exports-")

# Two engines add in different orders, so that a value between two levels can fall to the other one: single
# elements are off by about a step of 1/127 of their range, and nothing by much more. In the mean that is a
# small part of a step.
MEAN, LARGEST = 0.15, 3.0

needs_vnni = pytest.mark.skipif(saturates(), reason="this processor's products of uint8 and int8 saturate")

OFF = (
    "*.layer.0.attention.self.query._input_quantizer=off",
    "*.layer.0.intermediate.dense._weight_quantizer=off",
    "*.layer.0.attention.self.matmul_a*=off",
    "*.layer.1.attention.self.matmul_q*=off",
    "*.layer.1.attention.output.dense*=off",
)

UNSIGNED = ("*matmul_a_*=unsigned:true", "*.output.dense._input*=unsigned:true")


def calibrated(name: str, config: QDQConfig) -> PreTrainedModel:
    """Return a model of another placement than `models.calibrated`."""
    model = qdqpatch.quantize(models.float_model(name), config)
    return qdqpatch.calibrate(model, [models.inputs(name, seed) for seed in (2, 3)], "percentile")


def in_file(model: PreTrainedModel, outputs: models.Tensors) -> models.Tensors:
    """Return those of a model's outputs that its file has: not those of a float pooler that nothing reads."""
    pooler = model.config.quantization_config.pooler or type(model) is not transformers.BertModel
    return {name: value for name, value in outputs.items() if pooler or name != "pooler_output"}


def without_weight_ranges(model: PreTrainedModel) -> PreTrainedModel:
    """Take the ranges of all weights away, so that each is what the weight has."""
    for path, quantizer in models.named_quantizers(model):
        if path.endswith("_weight_quantizer"):
            del quantizer._buffers["_amax"]
    return model


def with_zero_ranges(model: PreTrainedModel) -> PreTrainedModel:
    """Give all kinds of quantizers a range of 0 in one place each, and a row of a weight too."""
    layer = model.get_submodule("bert.encoder.layer.0")
    for path in ("attention.self.matmul_v_input_quantizer", "intermediate.dense._input_quantizer"):
        layer.get_submodule(path).amax = 0.0
    dense = model.get_submodule("bert.encoder.layer.1.output.dense")
    with torch.no_grad():
        dense.weight[3] = 0
    dense._weight_quantizer.amax = dense.weight.detach().abs().amax(1, keepdim=True)
    return model


STATIC = {"shape": (2, 8)}  # which takes half the time, where no other variant has the same trace
FREE = ("BertModel", "BertForMaskedLM", "BertForMultipleChoice", "BertForTokenClassification", models.CROSS)
"""The heads that are exported for any shape; the others add the same Linears behind the same layers."""
TOKENS, SEQUENCES, BASE = "BertForTokenClassification", "BertForSequenceClassification", "BertModel"
VARIANTS: dict[str, tuple[str, Callable[[], PreTrainedModel], dict[str, Any]]] = {
    "no residual adds": (BASE, lambda: calibrated(BASE, QDQConfig.preset("no-residual")), STATIC),
    "Linears alone": (BASE, lambda: calibrated(BASE, QDQConfig.preset("linear-only")), {}),
    "all parts": (SEQUENCES, lambda: calibrated(SEQUENCES, QDQConfig(**models.PARTS_ON)), {}),
    "int8 embeddings": (
        TOKENS,
        lambda: without_weight_ranges(models.calibrated(TOKENS)),
        {"int8_embeddings": True, "shape": (2, 8)},
    ),
    "per tensor": (
        BASE,
        lambda: calibrated(BASE, QDQConfig(weight=QuantizerConfig(narrow_range=True), embeddings=True)),
        STATIC,
    ),
    "unsigned": (
        TOKENS,
        lambda: calibrated(TOKENS, QDQConfig(overrides=UNSIGNED)),
        {},
    ),
    "some off": (TOKENS, lambda: calibrated(TOKENS, QDQConfig(overrides=OFF)), {}),
    "zero ranges": (TOKENS, lambda: with_zero_ranges(models.calibrated(TOKENS)), STATIC),
    "fp32 weights": (TOKENS, lambda: models.calibrated(TOKENS), {"float_weights": True}),
    "with VNNI": (TOKENS, lambda: models.calibrated(TOKENS), {"vnni": True, "check": not saturates()}),
    "without VNNI": (TOKENS, lambda: models.calibrated(TOKENS), {"vnni": False}),
    "Linears without VNNI": (
        BASE,
        lambda: calibrated(BASE, QDQConfig.preset("linear-only")),
        {"vnni": False},
    ),
    "some off, without VNNI": (
        TOKENS,
        lambda: calibrated(TOKENS, QDQConfig(overrides=OFF)),
        {"vnni": False},
    ),
    "unsigned, without VNNI": (
        TOKENS,
        lambda: calibrated(TOKENS, QDQConfig(overrides=("*_weight_quantizer=unsigned:true", *UNSIGNED))),
        {"vnni": False},
    ),
}
"""Head, model and options."""


@dataclass(frozen=True)
class Made:
    """An export, to be read only.

    Attributes:
        name: The head; a key of `models.CHANGES`.
        model: What was exported.
        before: A snapshot of it, made before.
        result: What `export` returned.
    """

    name: str
    model: PreTrainedModel
    before: dict[str, Any]
    result: Export

    @functools.cached_property
    def graph(self) -> ir.Graph:
        """The graph in the file."""
        return ir.load(self.result.file).graph

    @functools.cached_property
    def session(self) -> Session:
        """The file, loaded in ONNX Runtime; as users load it, if it is for ONNX Runtime."""
        return ONNX_RUNTIME.load(self.result.file, threads=1, exact=self.result.target != "onnxruntime")


def made(variant: str, target: str = "onnxruntime") -> Made:
    """Export a variant, or a head of `models.CHANGES`, once for all tests."""
    return _made(variant, target)


def export(
    model: PreTrainedModel,
    out: Path,
    target: str = "onnxruntime",
    force: bool = False,
    **options: Any,
) -> Export:
    """Do what `qdqpatch.export` does, with what was traced already of a model that is alike."""
    write = prepare_export(model, target, ExportOptions(**options), all_traces())
    output = OutputFolder.open(out, force=force)
    with output.staged() as folder:
        return write(folder, output.given)


@functools.cache
def _made(variant: str, target: str) -> Made:
    default = (variant, lambda: models.calibrated(variant), {} if variant in FREE else STATIC)
    name, build, options = VARIANTS.get(variant, default)
    model = build()
    before = models.snapshot(model)
    folder = Path(_FOLDER.name) / f"{variant}-{target}".replace(" ", "-")
    exact = {"dtype": "float32"} if target == "tensorrt" else {}
    return Made(name, model, before, export(model, folder, target, **exact, **options))


def assert_close(expected: models.Tensors, found: dict[str, Array]) -> None:
    """Compare outputs within `MEAN` and `LARGEST` steps."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].shape == tuple(tensor.shape), name
        difference = np.abs(found[name] - tensor.numpy()) / (float(tensor.abs().max()) / 127)
        assert difference.mean() <= MEAN, name
        assert difference.max() <= LARGEST, name


def arrays(tensors: models.Tensors) -> dict[str, Array]:
    """Return tensors as NumPy has them."""
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def rewritten(text: str, module: nn.Module, *passes: tuple[RewriteRule, ...], opset: int = 20) -> ir.Model:
    """Apply rules to a graph in ONNX's text form; its paths are those of the module's children."""
    domains = f'"" : {opset}, "com.microsoft" : 1, "{DOMAIN}" : 1'
    model = ir.from_onnx_text(f"<ir_version: 10, opset_import: [{domains}]>\n{text}")
    rewriter = Rewriter(model, module)
    for rules in passes:
        apply(rewriter, *rules)
    RemoveUnusedNodesPass()(model)
    return model


def run(model: ir.Model, inputs: models.Tensors, *values: str) -> list[Array]:
    """Run a graph as it stands, in ONNX Runtime without its optimizations.

    Returns:
        The outputs, and other nodes' outputs by their names.
    """
    import onnxruntime

    known = {value.name: value for node in model.graph for value in node.outputs}
    count = len(model.graph.outputs)
    model.graph.outputs.extend(known[name] for name in values)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.to_proto(model).SerializeToString()
    del model.graph.outputs[count:]
    session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    return session.run(None, arrays(inputs))


def types(graph: ir.Graph) -> list[str]:
    """Return the operators of a graph, in order."""
    return [node.op_type for node in graph]


def constant(value: ir.Value | None) -> Array:
    """Return an initializer's numbers."""
    return value.const_value.numpy()
