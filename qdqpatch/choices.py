"""Names as plain data, above all of what one can choose: importing them costs nothing."""

from __future__ import annotations

from typing import Any, Literal, get_args

QUANT_METHOD = "qdqpatch"
"""The name under which transformers finds our way of quantizing in a `config.json`."""

QDQBERT = "qdqbert"
"""The type of the models that the old QDQBERT classes wrote."""

Method = Literal["max", "percentile", "mse", "entropy", "auto"]
"""How the range of an activation follows from what was seen."""

DEFAULT_PERCENTILE = 99.99
"""How many percent of the magnitudes a range takes in unless another share is asked for."""

WeightMethod = Literal["max", "mse", "pairs"]
"""How that of a weight does."""

ActivationRanges = Literal["frozen", "lsq", "clip"]
"""What training does to the ranges of activations."""

WeightRanges = Literal["frozen", "follow"]
"""What it does to those of weights."""

Target = Literal["tensorrt", "onnxruntime", "openvino"]
"""An engine to export for."""

Cpu = Literal["vnni", "avx2", "arm"]
"""Processors that run an exported file: x86 with VNNI or without, or Arm."""

Runner = Literal["torch", "onnxruntime", "openvino"]
"""What a model can be run in here, in the order of tables."""

GPU_RUNNERS = ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx")
"""What exported files can be benchmarked in on an NVIDIA GPU."""

METHODS: tuple[str, ...] = get_args(Method)
WEIGHT_METHODS: tuple[str, ...] = get_args(WeightMethod)
TARGETS: tuple[str, ...] = get_args(Target)
CPUS: tuple[str, ...] = get_args(Cpu)
RUNNERS: tuple[str, ...] = get_args(Runner)

PRESETS: dict[str, dict[str, Any]] = {
    "qdqbert": {},
    "no-residual": {"residual_adds": False},
    "linear-only": {"residual_adds": False, "matmuls": False},
    "outputs": {"outputs": True},
    "fp8": {"activation": {"num_bits": (4, 3)}, "weight": {"num_bits": (4, 3), "axis": 0}},
}
"""Named configurations: what each changes from the default, which is QDQBERT's. `outputs` adds what Linears
compute, and `fp8` is QDQBERT's placement in FP8 (E4M3)."""

AUTO_CLASSES = {
    "feature-extraction": "AutoModel",
    "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "multiple-choice": "AutoModelForMultipleChoice",
    "image-classification": "AutoModelForImageClassification",
    "next-sentence-prediction": "AutoModelForNextSentencePrediction",
    "text-generation": "AutoModelForCausalLM",
    "pretraining": "AutoModelForPreTraining",
}
"""The Auto class for each task, by the names that `transformers.pipeline` uses where it has one."""

MEASURED_TASKS = (
    "text-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
    "fill-mask",
    "feature-extraction",
    "image-classification",
)
"""The tasks that have labelled data and metrics: those of `qdqpatch.tasks.TASKS`."""

OPSETS = (17, 25)
"""The oldest and the newest version of ONNX's operators to export with."""

CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
"""What TensorRT for RTX 1.7 compiles for: Turing, two of Ampere, Ada and two of Blackwell."""

DEFAULT_CAPABILITIES = ("SM80", "SM86", "SM89", "SM120")
"""Those that files are compiled for unless told otherwise."""

FLOAT8_CAPABILITIES = ("SM89", "SM120", "SM121")
"""Those of them that multiply FP8."""
