"""What each architecture costs and gains at its real base size, with random weights: one row for each.

    python benchmarks/families.py [TYPE ...] [--shape 1x128] [--engines onnxruntime openvino]
                                    [--rounds 20] [--threads N]

Seconds to quantize, to calibrate (`max`, one batch) and to export without a check; how many of the matmuls
are integer kernels; and how many times as fast as the float model in the same engine the int8 one is, by the
medians of runs in turns. TYPE is a `config.model_type`; without any, all that the rules know and the
configurations of transformers describe. Sequences are no longer than a model takes (CLIP: 77).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from common import Row, prepare, quiet, seconds, show, surroundings
from transformers import AutoConfig, AutoModel, PreTrainedModel

import qdqpatch
from qdqpatch.engines.sessions import ENGINES, Session
from qdqpatch.engines.shapes import Shape
from qdqpatch.exporter.inputs import Inputs
from qdqpatch.rules.architectures import ARCHITECTURES

COLUMNS = (
    "model type",
    "parameters",
    "quantize",
    "calibrate",
    "engine",
    "export",
    "integer",
    "float",
    "int8",
    "",
)

CHANGES: dict[str, dict[str, Any]] = {
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
    "deberta-v2": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 256,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "type_vocab_size": 0,
    },
    "esmc": {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 30,
             "num_attention_heads": 15, "num_key_value_heads": 15},
    "gemma3_text": {"hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 24,
                    "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 256},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary"},
    "megatron-bert": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
                      "intermediate_size": 3072},
    "rembert": {"num_hidden_layers": 12},
    "qwen3": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
              "num_attention_heads": 16, "num_key_value_heads": 8},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}  # fmt: skip
"""Where the configuration's own defaults are of another size than the model that people use."""

BASES = {"t5": "T5EncoderModel", "siglip_text_model": "SiglipTextModel"}
EAGER = ("t5",)
"""Whose fused attention torch cannot write as ONNX; the float model computes it in single steps."""

SEED = 0


def main() -> None:
    """Print the table, and each row as soon as it is known on stderr."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("types", nargs="*", metavar="TYPE")
    parser.add_argument("--shape", type=Shape.parse, default=Shape(1, 128))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, help="of the engines; all cores without it")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.types if name not in ARCHITECTURES]:
        parser.error(f"no rules for {', '.join(unknown)}; there are for {', '.join(sorted(ARCHITECTURES))}")
    prepare()
    rows: list[Row] = []
    for name in arguments.types or sorted(ARCHITECTURES):
        try:
            found = measure(name, CHANGES.get(name, {}), arguments)
        except Exception as error:  # the other rows are worth having
            found = [(name, *[""] * (len(COLUMNS) - 2), f"{type(error).__name__}: {error}"[:200])]
        rows += found
        print(*found, sep="\n", file=sys.stderr, flush=True)
    show(f"Every architecture at its base size, {arguments.shape}", COLUMNS, rows)
    print(surroundings())
    print(*(f"{engine.name} {engine.version}" for engine in ENGINES.values()), sep=", ")


def measure(name: str, changes: dict[str, Any], arguments: argparse.Namespace) -> Sequence[Row]:
    """Return a row for each engine."""
    shape, rounds, threads = arguments.shape, arguments.rounds, arguments.threads
    source = build(name, changes)
    texts = source.config.get_text_config()
    shape = Shape(shape.batch, min(shape.length, getattr(texts, "max_position_embeddings", shape.length)))
    parameters = f"{sum(parameter.numel() for parameter in source.parameters()) / 1e6:.0f} M"
    inputs = Inputs(source, shape)
    batch = inputs.batch(shape)
    model = copy.deepcopy(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantizing, _ = seconds(lambda: qdqpatch.quantize(model))
        calibrating, _ = seconds(lambda: qdqpatch.calibrate(model, [batch], method="max"))
    rows: list[Row] = []
    for engine in arguments.engines:
        with tempfile.TemporaryDirectory() as folder, quiet():
            place = Path(folder)
            size = (shape.batch, shape.length)
            exporting, result = seconds(
                lambda: qdqpatch.export(model, place / "int8", engine, shape=size, check=False)  # noqa: B023
            )
            float_file = write_float(source, place, batch)
            sessions = [ENGINES[engine].load(file, threads) for file in (float_file, result.file)]
            before, after = in_turns(sessions, batch, rounds)
        integer = sum(operation.integer for operation in result.operations or ())
        rows.append(
            (
                name,
                parameters,
                f"{quantizing:.2f} s",
                f"{calibrating:.1f} s",
                engine,
                f"{exporting:.1f} s",
                f"{integer} of {len(result.operations or ())}",
                f"{1000 * before:.1f} ms",
                f"{1000 * after:.1f} ms",
                f"{before / after:.2f}x",
            )
        )
    return rows


def build(name: str, changes: dict[str, Any]) -> PreTrainedModel:
    """Return a base model with random weights."""
    torch.manual_seed(SEED)
    config = AutoConfig.for_model(name, **changes)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # a cache is no tensor, and cannot be exported
    base = BASES.get(name)
    made = AutoModel.from_config(config) if base is None else getattr(transformers, base)(config)
    if name in EAGER:
        made.set_attn_implementation("eager")
    model: PreTrainedModel = made.eval()
    return model


def write_float(model: PreTrainedModel, folder: Path, batch: dict[str, torch.Tensor]) -> Path:
    """Write the float model as ONNX, as torch exports it, and return the file."""
    file = folder / "float.onnx"
    program = torch.onnx.export(model, kwargs=batch, opset_version=20, dynamo=True, verbose=False)
    assert program is not None  # the old exporter returns None
    program.save(file, external_data=True)
    return file


def in_turns(sessions: Sequence[Session], batch: dict[str, torch.Tensor], rounds: int) -> tuple[float, float]:
    """Return the median seconds of a run of each of two sessions, which run in turns."""
    times: list[list[float]] = [[], []]
    for number in range(rounds + 2):
        for own, session in zip(times, sessions, strict=True):
            start = time.perf_counter()
            session.run_tensors(batch)
            if number > 1:  # the first ones set up what later ones have
                own.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main()
