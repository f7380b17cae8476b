"""An embedder side by side: what each tool makes of one model, how near it stays, and how fast it runs.

    python benchmarks/embedder_peers.py [FOLDER] [--questions 200] [--rounds 7] [--threads 1] [--model PATH]
        [--only TOOL ...]

The model and the texts are those of `benchmarks/embedders.py` (`--texts sentences`): all tools calibrate with
the same 128. Beside ours are ONNX Runtime's dynamic int8 with sentence-transformers' settings (per channel,
with embeddings), and what `transformers.exporters` makes with ONNX Runtime's and with NNCF's quantizers, for
which `make .peers/installed` brings NNCF. Each file is run by its engine, in one process and in turns, with
free shapes and any padding, as a server runs it. "Alone" is the lowest cosine between what a text gets in a
batch of 16 and what it gets alone.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import embedders
import numpy as np
import numpy.typing as npt
import peers
import torch
from common import Row, in_turn, prepare, quiet, seconds, show, surroundings
from export_speed import float_file
from torch import Tensor
from transformers import AutoTokenizer

import qdqpatch
from qdqpatch.engines.sessions import ENGINES, Session
from qdqpatch.exporter.asked import weight_method_for
from qdqpatch.exporter.targets.base import Target
from qdqpatch.exporter.targets.onnxruntime import TARGET as ONNX_RUNTIME
from qdqpatch.exporter.targets.openvino import TARGET as OPENVINO
from qdqpatch.optimizing.placements import DEFAULTS, Placement

SHAPES = ((1, 16), (1, 128), (16, 32), (16, 256))
ALONE = 32
"""So many questions are embedded alone too."""

STEPS: dict[str, Any] = {"shift": True, "smooth_inputs": True}
"""What ours are made with, beside what a processor asks for: the first rung of `qdqpatch.optimize` that meets
its budget on this model."""

LINEARS = Placement("linear-only", "asymmetric")
QUALITY = (*embedders.COLUMNS, "alone", "integer", "MB")


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
        needs: A module that has to be installed.
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


def dynamic(material: Material) -> Path:
    """ONNX Runtime's `quantize_dynamic` of torch's own export."""
    feed = {name: tensor.numpy() for name, tensor in material.batches[0].items()}
    return quantized(float_file(embedders.load(material.checkpoint), material.folder / "traced.onnx", feed))


def dynamic_of_ours(material: Material) -> Path:
    """The same of our float file, whose graph ONNX Runtime runs faster."""
    return quantized(as_float(ONNX_RUNTIME, "to-quantize")(material))


def quantized(file: Path) -> Path:
    """Quantize a file dynamically, with the operators that optimum has ONNX Runtime quantize."""
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
    Tool("dynamic int8", ONNX_RUNTIME, dynamic),
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


def main() -> None:
    """Print a table of quality and one of speed."""
    parser = embedders.parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    names = [tool.name for tool in TOOLS]
    parser.add_argument("--only", nargs="+", metavar="TOOL", choices=names, default=names)
    arguments = parser.parse_args()
    if (found := embedders.find(arguments)) is None:
        return
    name, checkpoint, data = found
    prepare()
    tools = [tool for tool in TOOLS if tool.name in arguments.only]
    numbers = (arguments.questions, arguments.rounds, arguments.threads)
    quality, speed = measure(checkpoint, data, *numbers, tools)
    show(f"{name}, {arguments.questions} contexts and questions, cosine to float", QUALITY, quality)
    columns = ("milliseconds", *(f"{batch}x{length}" for batch, length in SHAPES))
    show(f"{name}, times as fast as float in the same engine", columns, speed)
    print(surroundings(), *(f"{engine.name} {engine.version}" for engine in ENGINES.values()), sep=", ")


def measure(
    checkpoint: str,
    data: Path,
    questions: int,
    rounds: int,
    threads: int,
    tools: Sequence[Tool] = TOOLS,
    shapes: Sequence[tuple[int, int]] = SHAPES,
) -> tuple[list[Row], list[Row]]:
    """Return the rows of both tables; the first tool of an engine is the float model in it."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    contexts, asked = embedders.squad(data / "squad" / "dev.json.gz", questions)
    embedder = embedders.Embedder(tokenizer, contexts, asked)
    batches = embedders.calibration(tokenizer, data, "sentences")
    embedder.row("float", embedders.hidden_states(embedders.load(checkpoint)))
    quality: list[Row] = []
    sessions: dict[str, Session] = {}
    tools = installed(tools)
    with tempfile.TemporaryDirectory() as folder:
        material = Material(checkpoint, batches, Path(folder))
        for tool in tools:
            with quiet():
                duration, file = seconds(lambda: tool.make(material))  # noqa: B023
            sessions[tool.name] = session = ENGINES[tool.target.name].load(file, threads)
            row = embedder.row(tool.name, encoder(session), duration)
            kernels = tool.target.kernels(file) if tool.target.kernels else []
            integer = f"{sum(kernel.integer for kernel in kernels)} of {len(kernels)}"
            alone = together_and_alone(tokenizer, encoder(session), asked[:ALONE])
            quality.append((*row, f"{alone:.4f}", integer, f"{size(file) / 1e6:.1f}"))
            print(quality[-1], file=sys.stderr, flush=True)
        feeds = {shape: feed(len(tokenizer), *shape) for shape in shapes}
        runs = {
            shape: {name: functools.partial(session.run, feeds[shape]) for name, session in sessions.items()}
            for shape in shapes
        }
        times = {shape: in_turn(runs[shape], rounds) for shape in shapes}
    floats: dict[str, str] = {}
    speed = []
    for tool in tools:
        base = floats.setdefault(tool.target.name, tool.name)
        taken = [(times[shape][tool.name], times[shape][base]) for shape in shapes]
        speed.append((tool.name, *(f"{1000 * own:.1f} ({before / own:.2f}x)" for own, before in taken)))
    return quality, speed


def installed(tools: Sequence[Tool]) -> list[Tool]:
    """Return the tools whose modules are there, and say which are not."""
    if peers.FOLDER.is_dir() and str(peers.FOLDER) not in sys.path:
        sys.path.append(str(peers.FOLDER))
    found = []
    for tool in tools:
        if importlib.util.find_spec(tool.needs) is None:
            print(f"{tool.name} is left out: {tool.needs} is not installed; see benchmarks/peers.txt")
        else:
            found.append(tool)
    return found


def encoder(session: Session) -> embedders.Encode:
    """Return what runs a file."""

    def encode(inputs: dict[str, Tensor]) -> Tensor:
        outputs = session.run_tensors(inputs)
        return torch.from_numpy(np.asarray(outputs.get("last_hidden_state", next(iter(outputs.values())))))

    return encode


def together_and_alone(tokenizer: Any, encode: embedders.Encode, texts: Sequence[str]) -> float:
    """Return the lowest cosine between what texts get in batches and what they get alone."""
    lowest = 1.0
    for start in range(0, len(texts), embedders.BATCH):
        batch = texts[start : start + embedders.BATCH]
        together = vectors(tokenizer, encode, batch)
        alone = torch.cat([vectors(tokenizer, encode, [text]) for text in batch])
        lowest = min(lowest, float((together * alone).sum(-1).min()))
    return lowest


def vectors(tokenizer: Any, encode: embedders.Encode, texts: Sequence[str]) -> Tensor:
    """Return the normalized means of the last hidden states of one batch, shape `(texts, hidden)`."""
    inputs = embedders.tokenized(tokenizer, texts, embedders.LENGTH)
    mask = inputs["attention_mask"][..., None]
    return torch.nn.functional.normalize((encode(inputs) * mask).sum(1) / mask.sum(1), dim=-1)


def size(file: Path) -> int:
    """Return the bytes of a file, and of the weights beside it."""
    beside = [file.with_suffix(".bin")] if file.suffix == ".xml" else file.parent.glob(f"{file.name}*data")
    return sum(one.stat().st_size for one in (file, *beside))


def feed(vocabulary: int, batch: int, length: int) -> dict[str, npt.NDArray[np.int64]]:
    """Return inputs without padding."""
    ids = np.random.default_rng(0).integers(0, vocabulary, (batch, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


if __name__ == "__main__":
    main()
