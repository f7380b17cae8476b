"""What TensorRT makes of our files and of others': kernels, fused attentions, and the memory that moves.

    python benchmarks/tensorrt_rtx.py [--capability SM89] [--heads 12] [--shapes 1x128 32x128 8x384] [--ours]

Two layers of BERT-base with random weights are written by every tool and compiled by TensorRT for RTX, which
needs no GPU. A tool that is not installed is left out (`benchmarks/peers.txt`), and so is the original
QDQBERT where QDQPATCH_REFERENCE_PYTHON is not set: an environment of `tests/reference/requirements.txt` and
`onnx`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import peers
import torch
from common import BERT_BASE, Row, prepare, quiet, show, surroundings
from export_speed import SMOOTHED, Feed, feed_of, float_file, multiply, tensors
from transformers import BertConfig, BertModel

import qdqpatch
from qdqpatch import QDQConfig
from qdqpatch.choices import CAPABILITIES
from qdqpatch.engines.shapes import Shape
from qdqpatch.engines.tensorrt.build import build, require
from qdqpatch.engines.tensorrt.half import cast_floats, remove_quantizers
from qdqpatch.engines.tensorrt.table import read_table
from qdqpatch.errors import EngineError
from qdqpatch.lint.graph import read_sites

SHAPES = (Shape(1, 128), Shape(32, 128), Shape(8, 384))
LAYERS = 2
FLOAT = "float, fp16"
REFERENCE = "QDQPATCH_REFERENCE_PYTHON"
OURS = {
    "qdqpatch, qdqbert": (QDQConfig(), "float16"),
    "qdqpatch, qdqbert, bf16": (QDQConfig(), "bfloat16"),
    "qdqpatch, qdqbert, fp32": (QDQConfig(), "float32"),
    "qdqpatch, no-residual": (QDQConfig.preset("no-residual"), "float16"),
    "qdqpatch, linear-only": (QDQConfig.preset("linear-only"), "float16"),
    "qdqpatch, qdqbert, smoothed": (QDQConfig(), "float16"),
    "qdqpatch, outputs": (QDQConfig.preset("outputs"), "float16"),
    "qdqpatch, outputs, smoothed": (QDQConfig.preset("outputs"), "float16"),
    "qdqpatch, fp8": (QDQConfig.preset("fp8"), "float16"),
}
"""Configuration and float type by name. Calibrated by maximum, readers of one tensor have one range; when
smoothed, they multiply its channels."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--capability", choices=CAPABILITIES, default="SM89")
    parser.add_argument("--heads", type=int, default=BERT_BASE.num_attention_heads)
    parser.add_argument("--shapes", nargs="+", type=Shape.parse, default=SHAPES)
    parser.add_argument("--ours", action="store_true", help="without the other tools' files")
    arguments = parser.parse_args()
    try:
        require([arguments.capability])
    except EngineError as error:
        print(f"Skipped: {error}")
        return
    prepare()
    config = BertConfig(num_hidden_layers=LAYERS, num_attention_heads=arguments.heads)
    rows: list[Row] = []
    moved: dict[Shape, int] = {}
    with tempfile.TemporaryDirectory() as name:
        for title, file in files(config, Path(name), arguments.ours):
            cells = [cell(file, arguments.capability, shape, moved) for shape in arguments.shapes]
            rows.append((title, *cells))
            print(rows[-1], file=sys.stderr, flush=True)
    columns = ("", *(f"{shape}" for shape in arguments.shapes))
    show(f"{arguments.capability}: kernels (fused attentions), MiB moved (to fp16)", columns, rows)
    print(surroundings())


def cell(file: Path, capability: str, shape: Shape, floats: dict[Shape, int]) -> str:
    """Compile a file and describe it; the first one of a shape is what the others are held against."""
    try:
        built = build(file, capability, shape)
    except EngineError as error:
        return f"refused: {str(error).rpartition(': ')[2]}"
    to_float = built.moved / floats.setdefault(shape, built.moved)
    fused = read_table(built, read_sites(file), None).fused_attentions
    return f"{len(built.kernels)} ({fused}), {built.moved / 2**20:.1f} ({to_float:.2f})"


def files(config: BertConfig, folder: Path, only_ours: bool = False) -> Iterator[tuple[str, Path]]:
    """Yield name and file of every contender, the float model first."""
    torch.manual_seed(0)
    model, feed = BertModel(config, add_pooling_layer=False).eval(), feed_of(config, 2, 32)
    state = model.state_dict()
    floating = float_file(model, folder / "fp32.onnx", feed)
    first = {
        title: ours(config, state, placement, dtype, folder / title.replace(", ", "-"), feed)
        for title, (placement, dtype) in list(OURS.items())[:1]
    }
    half = ir.load(next(iter(first.values())))
    remove_quantizers(half)
    ir.save(half, folder / "fp16.onnx")
    yield FLOAT, folder / "fp16.onnx"
    yield from first.items()
    for title, (placement, dtype) in list(OURS.items())[1:]:
        yield title, ours(config, state, placement, dtype, folder / title.replace(", ", "-"), feed)
    if only_ours:
        return
    half = ir.load(floating)
    cast_floats(half, ir.DataType.FLOAT16)
    ir.save(half, folder / "torch.onnx")
    yield f"{FLOAT}, torch's export", folder / "torch.onnx"
    if (original := original_qdqbert(folder)) is not None:
        yield "original QDQBERT", original
    yield from peers.make({**peers.TENSORRT, **peers.from_torch(model)}, floating, feed)


def ours(
    config: BertConfig,
    state: dict[str, torch.Tensor],
    placement: QDQConfig,
    dtype: str,
    folder: Path,
    feed: Feed,
) -> Path:
    """Quantize, calibrate and export the model."""
    model = BertModel(config, add_pooling_layer=False).eval()
    model.load_state_dict(state)
    with quiet():
        qdqpatch.quantize(model, placement)
        if SMOOTHED in folder.name:
            multiply(model)
        qdqpatch.calibrate(model, [tensors(feed)], method="max")
        return qdqpatch.export(model, folder, "tensorrt", dtype=dtype, check=False).file


def original_qdqbert(folder: Path) -> Path | None:
    """Let the original classes write their file; None, and a line, where they are not there."""
    python = os.environ.get(REFERENCE)
    script, out = Path(__file__).with_name("original_qdqbert.py"), folder / "original.onnx"
    if python is None:
        print(f"The original QDQBERT is left out: {REFERENCE} is not set.")
        return None
    done = subprocess.run(
        [python, str(script), str(out), str(LAYERS)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"The original QDQBERT is left out: {done.stderr.strip().splitlines()[-1]}")
        return None
    return out


if __name__ == "__main__":
    main()
