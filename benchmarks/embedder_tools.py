"""What each tool makes of an embedder, for `benchmarks/embedder_peers.py`."""

from __future__ import annotations

import importlib
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import embedders
from export_speed import float_file
from torch import Tensor

import qdqpatch
from qdqpatch.engines.vnni import saturates
from qdqpatch.exporter.asked import weight_method_for
from qdqpatch.exporter.targets.base import Target
from qdqpatch.exporter.targets.onnxruntime import TARGET as ONNX_RUNTIME
from qdqpatch.exporter.targets.openvino import TARGET as OPENVINO
from qdqpatch.optimizing.placements import DEFAULTS, Placement

SERVERS = "QDQPATCH_SERVERS_PYTHON"
"""The environment variable that names the Python of an environment with `tests/servers.txt`."""

STEPS: dict[str, Any] = {"shift": True, "smooth_inputs": True}
"""What ours are made with, beside what a processor asks for: the first rung of `qdqpatch.optimize` that meets
its budget on this model."""

LINEARS = Placement("linear-only", "asymmetric")


@dataclass(frozen=True)
class Material:
    """What a tool is given.

    Attributes:
        checkpoint: The float model's folder.
        batches: What to calibrate with.
        folder: Where files go.
    """

    checkpoint: str
    batches: Sequence[Mapping[str, Tensor]]
    folder: Path


Make = Callable[[Material], Path]


@dataclass(frozen=True)
class Tool:
    """What makes a file.

    Attributes:
        name: What the tables call it.
        target: The engine that the file is for.
        make: Makes it.
        needs: A module that has to be installed, or an environment variable that has to be set.
    """

    name: str
    target: Target
    make: Make
    needs: str = "onnxruntime"


def ours(target: Target, placement: Placement) -> Make:
    """Return what makes our file for an engine."""

    def make(material: Material) -> Path:
        model = embedders.load(material.checkpoint)
        weights = weight_method_for(target.name, None)
        config = placement.config_for(model)
        qdqpatch.ptq(model, material.batches, config, weight_method=weights, **STEPS)
        out = material.folder / f"{target.name}-{placement.preset}"
        return qdqpatch.export(model, out, target.name, int8_embeddings=True).file

    return make


def as_float(target: Target, folder: str = "float") -> Make:
    """Return what makes the float file for an engine."""

    def make(material: Material) -> Path:
        model = embedders.load(material.checkpoint)
        out = material.folder / f"{target.name}-{folder}"
        return qdqpatch.export(model, out, target.name, as_float=True).file

    return make


def by_sentence_transformers(material: Material) -> Path:
    """What sentence-transformers writes for this processor, made in an environment of its own."""
    out = material.folder / "sentence-transformers"
    script = Path(__file__).with_name("optimum_peer.py")
    processor = "avx2" if saturates() else "avx512_vnni"
    command = [os.environ[SERVERS], str(script), material.checkpoint, str(out), processor]
    subprocess.run(command, check=True, capture_output=True, env=own_environment())
    return out / "model_quantized.onnx"


def own_environment() -> dict[str, str]:
    """Return the environment without what is there for this Python."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LD_PRELOAD")}


def dynamic(material: Material) -> Path:
    """ONNX Runtime's `quantize_dynamic` of torch's own export."""
    feed = {name: tensor.numpy() for name, tensor in material.batches[0].items()}
    return quantized(float_file(embedders.load(material.checkpoint), material.folder / "traced.onnx", feed))


def dynamic_of_ours(material: Material) -> Path:
    """The same of our float file, whose graph ONNX Runtime runs faster."""
    return quantized(as_float(ONNX_RUNTIME, "to-quantize")(material))


def quantized(file: Path) -> Path:
    """Quantize a file dynamically, per channel: Linears and embeddings."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

    out = file.with_name(f"dynamic-{file.name}")
    quantize_dynamic(
        str(file),
        str(out),
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
    )
    return out


def exporters(backend: str, quantizer: str, **settings: Any) -> Make:
    """Return what lets `transformers.exporters` export and quantize, with all texts to calibrate with."""

    def make(material: Material) -> Path:
        tools: Any = importlib.import_module("transformers.exporters")
        samples = [dict(batch) for batch in material.batches]
        config = (tools.OnnxRuntimeStaticConfig(**settings),) if settings else ()
        chosen = getattr(tools, quantizer)(*config, calibration_dataset=samples)
        exporter = getattr(tools, f"{backend}Exporter")()
        options = getattr(tools, f"{backend}Config")(dynamic=True, quantizer=chosen)
        out = material.folder / quantizer
        model = embedders.load(material.checkpoint)
        exporter.export(model, samples[0], config=options).save_pretrained(out)
        return next(file for suffix in (".onnx", ".xml") for file in out.rglob(f"*{suffix}"))

    return make


TOOLS = (
    Tool("float", ONNX_RUNTIME, as_float(ONNX_RUNTIME)),
    Tool("dynamic int8 of sentence-transformers", ONNX_RUNTIME, by_sentence_transformers, SERVERS),
    Tool("dynamic int8 of torch's export", ONNX_RUNTIME, dynamic),
    Tool("dynamic int8 of our float file", ONNX_RUNTIME, dynamic_of_ours),
    Tool(
        "transformers.exporters, quantize_static",
        ONNX_RUNTIME,
        exporters("Onnx", "OnnxRuntimeQuantizer", per_channel=True, op_types_to_quantize=["MatMul", "Gemm"]),
    ),
    Tool("transformers.exporters, NNCF", ONNX_RUNTIME, exporters("Onnx", "NNCFOnnxQuantizer"), "nncf"),
    Tool("qdqpatch, linear-only", ONNX_RUNTIME, ours(ONNX_RUNTIME, LINEARS)),
    Tool("qdqpatch, no-residual", ONNX_RUNTIME, ours(ONNX_RUNTIME, DEFAULTS["onnxruntime"])),
    Tool("float, OpenVINO", OPENVINO, as_float(OPENVINO), "openvino"),
    Tool(
        "transformers.exporters, NNCF, OpenVINO",
        OPENVINO,
        exporters("OpenVINO", "NNCFOpenVINOQuantizer"),
        "nncf",
    ),
    Tool("qdqpatch, linear-only, OpenVINO", OPENVINO, ours(OPENVINO, LINEARS), "openvino"),
    Tool("qdqpatch, no-residual, OpenVINO", OPENVINO, ours(OPENVINO, DEFAULTS["openvino"]), "openvino"),
)
