"""`qdqpatch convert`: quantize a checkpoint, calibrate it if data is given, and save it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qdqpatch.choices import TARGETS, Cpu
from qdqpatch.cli.calibrating import Calibration, Prepared
from qdqpatch.cli.calibration import calibration_options
from qdqpatch.cli.common import Placement, code_option, placement_options, task_option, verbosity_options
from qdqpatch.cli.export import print_export, tokenizer
from qdqpatch.cli.options import cpu_option
from qdqpatch.cli.places import inputs
from qdqpatch.cli.sections import SectionCommand
from qdqpatch.errors import CalibrationError, ConfigError, QuantizedError
from qdqpatch.spelling import counted

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel

    from qdqpatch.checkpoint.companions import Companions
    from qdqpatch.evaluation.outcome import Before
    from qdqpatch.tasks.metrics import Metric


@click.command("convert", cls=SectionCommand, short_help="Quantize a checkpoint, calibrate it and save it.")
@click.argument("ckpt")
@click.argument("out", type=click.Path(path_type=Path))
@task_option
@placement_options
@calibration_options
@click.option(
    "--export",
    "--target",
    "targets",
    type=click.Choice(TARGETS),
    multiple=True,
    help="Also write the model for this engine: OUT/onnx/model.onnx, or OUT/openvino/openvino_model.xml. Can "
    "be repeated, but for tensorrt and onnxruntime, whose files have the same name.",
)
@cpu_option
@click.option(
    "--triton",
    is_flag=True,
    help="With --export onnxruntime: also write config.pbtxt, which makes OUT a model of Triton Inference "
    "Server.",
)
@click.option("--force", is_flag=True, help="Replace OUT if it holds what qdqpatch wrote.")
@code_option
@verbosity_options
def command(
    ckpt: str,
    out: Path,
    task: str | None,
    placement: Placement,
    calibration: Calibration | None,
    targets: tuple[str, ...],
    cpu: Cpu | None,
    triton: bool,
    force: bool,
    console: Console,
) -> None:
    """Quantize CKPT and save it to the folder OUT.

    OUT loads with `import qdqpatch` and AutoModel...from_pretrained. CKPT may also be a checkpoint of the
    old QDQBERT classes, which keeps its ranges. OUT is complete or is not there.
    """
    from qdqpatch.checkpoint.companions import read_companions
    from qdqpatch.checkpoint.source import open_checkpoint
    from qdqpatch.distributed import is_first
    from qdqpatch.engines.device import to_fastest_device
    from qdqpatch.exporter.export import check_placement, prepare_exports, require_packages
    from qdqpatch.exporter.options import ExportOptions
    from qdqpatch.output.folder import OutputFolder
    from qdqpatch.output.record import write_record
    from qdqpatch.patching.apply import named_quantizers
    from qdqpatch.patching.quantize import quantize
    from qdqpatch.report.quantizers import STATISTICS_FILE, load_statistics

    started = time.perf_counter()
    targets = tuple(dict.fromkeys(targets))
    if {"onnxruntime", "tensorrt"} <= {*targets}:
        raise click.UsageError(
            "--export onnxruntime and --export tensorrt both write onnx/model.onnx: leave one out, and "
            "write it to another folder with qdqpatch export."
        )
    if cpu is not None and not {"onnxruntime", "openvino"} & {*targets}:
        raise click.UsageError("--cpu is for --export onnxruntime and --export openvino.")
    if triton and "onnxruntime" not in targets:
        raise click.UsageError("--triton needs --export onnxruntime, whose file Triton is to load.")
    for target in targets:
        way = "write the file afterwards: qdqpatch export OUT FOLDER --no-check"
        require_packages(target, otherwise=way)
    with console.status(f"Reading {ckpt}"):
        source = open_checkpoint(ckpt, task)
        companions = read_companions(ckpt)
    config = placement()
    if config is not None and source.quantization is not None:
        raise QuantizedError(
            f"{ckpt} is quantized already. Convert the float checkpoint, or leave out --preset, --config "
            "and --override to keep its placement."
        )
    output = OutputFolder.open(out, inputs(), force)
    plan = source.plan(config)
    source.check_weights(fresh_head=True)
    if source.quantization is None and (shortfall := plan.shortfall()):
        console.print(f"Warning: {shortfall}")
    if calibration is not None:
        calibration = calibration.for_files(targets, cpu)
    set_ranges = None if calibration is None else calibration.prepare(ckpt, companions, console)
    with console.status(f"Loading {ckpt}"):
        model, missing = source.load(fresh_head=True)
    if missing:
        console.print(f"Warning: {ckpt} lacks these weights, which are random now: {', '.join(missing)}")
    texts = set_ranges if isinstance(set_ranges, Prepared) else None
    before = None if texts is None else _before(model, texts, companions)
    if source.quantization is None:
        quantize(model, config)
    for target in targets:
        check_placement(model, target)
    statistics = load_statistics(source) if set_ranges is None else set_ranges(to_fastest_device(model))
    close = [] if before is None else _closeness(before, model)  # all processes share the texts
    if not is_first():
        return
    options = ExportOptions(cpu=cpu, triton=triton, tokenizer=tokenizer(ckpt), source=ckpt)
    writers = prepare_exports(model, targets, options) if targets else []
    with output.staged() as folder, console.status(f"Saving {out}"):
        model.save_pretrained(folder)
        if statistics:
            statistics.write(folder / STATISTICS_FILE)
        companions.copy(folder)
        write_record(model, folder, **({} if set_ranges is None else set_ranges.record(model)))
        exports = [write(folder, out) for write in writers]
    enabled = [quantizer for _, quantizer in named_quantizers(model) if quantizer.is_enabled]
    calibrated = [quantizer.amax is not None for quantizer in enabled]
    console.print(
        f"Wrote {out}: {counted(len(plan.sites), 'operation')} quantized, {len(plan.misses)} left float; "
        f"{sum(calibrated)} of {counted(len(calibrated), 'quantizer')} have a range "
        f"({time.perf_counter() - started:.1f} s)."
    )
    if before is not None and texts is not None and close:
        _print_outcome(before, close, texts.held_back, ckpt, console)
    for export in exports:
        print_export(export, console)
    if not any(calibrated):
        console.print("To set the ranges, convert again with --calib FILE.")


def _before(model: PreTrainedModel, texts: Prepared, companions: Companions) -> Before | None:
    """Run the model in float on the texts to judge on; None where it gives nothing that could be judged."""
    from qdqpatch.evaluation.outcome import Before
    from qdqpatch.patching.apply import is_quantized
    from qdqpatch.sensitivity.subject import switching

    model.eval()
    batches = texts.batches(model)
    try:
        if not is_quantized(model):
            return Before.of(model, batches, companions)
        with switching(model) as only:
            only(())
            return Before.of(model, batches, companions)
    except (CalibrationError, ConfigError):
        return None


def _closeness(before: Before, model: PreTrainedModel) -> list[Metric]:
    """Return how close the model is to the float one now; nothing where so few texts cannot tell."""
    try:
        return before.closeness(model.eval())
    except ConfigError:
        return []


def _print_outcome(
    before: Before, close: Sequence[Metric], held_back: bool, ckpt: str, console: Console
) -> None:
    """Say how close the model is to the float one, and where to go if that is poor."""
    from qdqpatch.optimizing.budget import Budget

    figures = ", ".join(f"{metric.name} {metric}" for metric in reversed(close))
    which = "held back" if held_back else "that it was calibrated with, for lack of others"
    console.print(f"Beside the float model, on {counted(len(before.rows), 'text')} {which}: {figures}.")
    budget = Budget(before.meaning)
    if not budget.judge(close).passes:
        asked = budget.asked(metric.name for metric in close)
        console.print(
            f"That is less than {asked}. Better steps are found by: qdqpatch optimize {ckpt} OUT --data FILE"
        )
