"""`qdqpatch export`: write a calibrated checkpoint for the engine that will run it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qdqpatch.choices import OPSETS, Cpu
from qdqpatch.cli.common import code_option, task_option, verbosity_options
from qdqpatch.cli.compiling import build_options, check_options, print_builds, read_builds, wanted
from qdqpatch.cli.options import cpu_option, target_option
from qdqpatch.cli.places import inputs
from qdqpatch.cli.sections import SectionCommand
from qdqpatch.cli.shapes import SHAPE
from qdqpatch.engines.shapes import Shape
from qdqpatch.errors import NotQuantizedError

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from qdqpatch.exporter.result import Export


@click.command("export", cls=SectionCommand, short_help="Write a calibrated checkpoint for an engine.")
@click.argument("ckpt")
@click.argument("out", type=click.Path(path_type=Path))
@target_option(help="The engine: the numbers are the same for each, the graph is what it runs fast.")
@task_option
@click.option(
    "--shape",
    metavar="BATCHxLENGTH",
    type=SHAPE,
    help="The only shape that the file shall take, such as 1x128; the default is any.",
)
@click.option(
    "--weights",
    type=click.Choice(["int8", "fp32"]),
    default="int8",
    show_default=True,
    help="How weights are stored; fp32 is for TensorRT alone, and four times the size.",
)
@cpu_option
@click.option(
    "--vnni/--no-vnni",
    default=None,
    hidden=True,
    help="The same as --cpu vnni or --cpu avx2.",
)
@click.option(
    "--float",
    "as_float",
    is_flag=True,
    help="Write a float CKPT as it is, to compare an int8 file with in the same engine.",
)
@click.option(
    "--int8-embeddings", is_flag=True, help="Store the embeddings in int8 too. Outputs change a bit."
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    help="For TensorRT: what stays float is in this type, float16 unless told otherwise.",
)
@click.option("--int32-inputs", is_flag=True, help="Take token ids, mask and segments as int32, not int64.")
@click.option("--float32-outputs", is_flag=True, help="Give float32 where the file computes in 16 bits.")
@click.option(
    "--opset", type=click.IntRange(*OPSETS), help="Version of ONNX's operators, if not the target's."
)
@click.option(
    "--check/--no-check", default=True, help="Run the file and compare it with the model (default)."
)
@click.option(
    "--triton",
    is_flag=True,
    help="For ONNX Runtime: also write config.pbtxt, which makes OUT a model of Triton Inference Server.",
)
@build_options
@click.option("--force", is_flag=True, help="Replace OUT if it holds what qdqpatch wrote.")
@code_option
@verbosity_options
def command(
    ckpt: str,
    out: Path,
    target: str,
    task: str | None,
    shape: Shape | None,
    weights: str,
    cpu: Cpu | None,
    vnni: bool | None,
    as_float: bool,
    int8_embeddings: bool,
    dtype: str | None,
    int32_inputs: bool,
    float32_outputs: bool,
    opset: int | None,
    check: bool,
    triton: bool,
    build: bool,
    capability: tuple[str, ...],
    force: bool,
    console: Console,
) -> None:
    """Write the calibrated checkpoint CKPT to the folder OUT, for TensorRT, ONNX Runtime or OpenVINO.

    With --float it is a float checkpoint that is written, in float.

    OUT gets onnx/model.onnx, or openvino/openvino_model.xml for OpenVINO, with config.json, the tokenizer and
    what sentence-transformers needs, as servers look for them. The file is run on texts of several lengths
    and compared with the model first: OUT is right or is not there.
    """
    from qdqpatch.checkpoint.source import open_checkpoint
    from qdqpatch.exporter.export import export as export_model
    from qdqpatch.output.folder import OutputFolder

    started = time.perf_counter()
    check_options(target, build, capability)
    if triton and target != "onnxruntime":
        raise click.UsageError("--triton needs --target onnxruntime, whose file Triton is to load.")
    source = open_checkpoint(ckpt, task)
    if source.quantization is None and not as_float:
        raise NotQuantizedError(
            f"{ckpt} is not quantized. Make an int8 checkpoint of it first: "
            f"qdqpatch convert {ckpt} OUT --calib FILE. For a float file, to compare with: --float."
        )
    float8 = source.quantization is not None and source.quantization.has_float8
    capabilities = wanted(build, capability, float8)
    OutputFolder.open(out, inputs(), force)
    with console.status(f"Loading {ckpt}") as status:
        model, _ = source.load()
        result = export_model(
            model,
            out,
            target,
            shape=None if shape is None else (shape.batch, shape.length),
            float_weights=weights == "fp32",
            cpu=cpu,
            vnni=vnni,
            as_float=as_float,
            int8_embeddings=int8_embeddings,
            dtype=dtype,
            int32_inputs=int32_inputs,
            float32_outputs=float32_outputs,
            opset=opset,
            check=check,
            tokenizer=tokenizer(ckpt),
            source=ckpt,
            triton=triton,
            force=force,
            build=capabilities,
            progress=status.update,
        )
    print_export(result, console, f" ({time.perf_counter() - started:.1f} s)")
    if result.builds:
        from qdqpatch.lint.graph import read_sites

        with console.status("Compiling the model in fp16") as status:
            tables = read_builds(result.file, result.builds, read_sites(result.file), status.update)
        print_builds(result.file, tables)


def tokenizer(ckpt: str) -> PreTrainedTokenizerBase | None:
    """Return the checkpoint's tokenizer; None if it has none."""
    from qdqpatch.checkpoint.files import find_file
    from qdqpatch.checkpoint.tokenizer import VOCABULARIES, load_tokenizer

    return load_tokenizer(ckpt) if any(find_file(ckpt, name) for name in VOCABULARIES) else None


def print_export(result: Export, console: Console, taken: str = "") -> None:
    """Say what was written, how it was compared, and which matmuls stayed float."""
    for line in result.lines(taken):
        console.print(line)
