"""The command line: `qdqpatch COMMAND`."""

from __future__ import annotations

import click

import qdqpatch
from qdqpatch.cli.bench import bench
from qdqpatch.cli.convert import convert
from qdqpatch.cli.eval import evaluate_models
from qdqpatch.cli.export import export
from qdqpatch.cli.inspect import inspect
from qdqpatch.cli.lint import lint
from qdqpatch.cli.sensitivity import sensitivity
from qdqpatch.cli.train import train


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(qdqpatch.__version__, prog_name="qdqpatch")
def main() -> None:
    """Turn Hugging Face BERTs into int8 ones that TensorRT, ONNX Runtime and OpenVINO run fast.

    CKPT is a folder that save_pretrained wrote, or the name of a model on the Hugging Face hub.

    \b
    See what would be quantized:      qdqpatch inspect CKPT
    Quantize, calibrate and save:     qdqpatch convert CKPT OUT --calib sentences.txt
    Write it for an engine:           qdqpatch export OUT ENGINE --target onnxruntime
    Train it to the float model:      qdqpatch train CKPT OUT --distill --data train.tsv
    Check an ONNX file for an engine: qdqpatch lint FILE.onnx --target onnxruntime
    Compare speed, size and memory:   qdqpatch bench CKPT OUT
    Find what to leave in float:      qdqpatch sensitivity CKPT --data dev.tsv --max-drop 1
    Compare metrics on labelled data: qdqpatch eval CKPT OUT --data dev.tsv
    """  # noqa: D301 - click takes the character, not a backslash


main.add_command(bench)
main.add_command(convert)
main.add_command(evaluate_models)
main.add_command(export)
main.add_command(inspect)
main.add_command(lint)
main.add_command(sensitivity)
main.add_command(train)
