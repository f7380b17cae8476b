"""`qdqpatch optimize`: the best int8 of a checkpoint for one engine, in a folder that is ready to serve."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qdqpatch.choices import Cpu
from qdqpatch.cli.bar import CalibrationBar
from qdqpatch.cli.common import Placement, code_option, placement_options, verbosity_options
from qdqpatch.cli.data import Data, data_options
from qdqpatch.cli.export import print_export, tokenizer
from qdqpatch.cli.numbers import NOT_NEGATIVE
from qdqpatch.cli.options import SEED, batch_option, cpu_option, json_option, target_option, threads_option
from qdqpatch.cli.places import inputs
from qdqpatch.cli.sections import SectionCommand, SectionOption
from qdqpatch.cli.shapes import SHAPE
from qdqpatch.cli.tables import print_table, print_text
from qdqpatch.engines.shapes import Shape
from qdqpatch.errors import QuantizedError
from qdqpatch.spelling import counted

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel

    from qdqpatch.checkpoint.companions import Companions
    from qdqpatch.optimizing.engine import Place
    from qdqpatch.optimizing.result import Optimization
    from qdqpatch.output.folder import OutputFolder

_data = functools.partial(click.option, cls=SectionOption, section="Data")
_budget = functools.partial(click.option, cls=SectionOption, section="Budget")
_output = functools.partial(click.option, cls=SectionOption, section="Output")

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_TIME = re.compile(r"(\d+(?:\.\d+)?)([smh]?)")


def _seconds(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """Read a time such as 90s, 10m or 1h."""
    if text is None:
        return None
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise click.BadParameter(f"{text!r} is no time: write 90s, 10m or 1h.", context, parameter)
    return float(found[1]) * UNITS[found[2]]


@click.command(
    "optimize", cls=SectionCommand, short_help="Make the best int8 model for an engine and a budget."
)
@click.argument("ckpt")
@click.argument("out", type=click.Path(path_type=Path))
@target_option(
    help="The engine that will run it, and in which it is judged (a file for tensorrt in ONNX Runtime)."
)
@cpu_option
@placement_options
@data_options
@_data(
    "--samples",
    default=256,
    show_default=True,
    type=click.IntRange(min=1),
    help="How many texts to calibrate with at most.",
)
@_data(
    "--held-back",
    type=click.IntRange(min=1),
    help="How many texts to judge on.  [default: a third, at most 256]",
)
@_data("--seed", type=SEED, default=0, show_default=True, help="Another seed draws other texts.")
@_budget(
    "--max-drop",
    metavar="PERCENT",
    type=NOT_NEGATIVE,
    help="How much worse the main metric may be than the float model's: that of labels where the data has "
    "any, else of how close outputs are.  [default: gates by the head, such as a mean cosine of 0.995 and "
    "95% of the ten nearest kept]",
)
@_budget(
    "--time",
    "seconds",
    metavar="TIME",
    callback=_seconds,
    help="How long it may take, such as 10m: a step that will not fit is not begun.  [default: no limit]",
)
@_budget("--keep-best", is_flag=True, help="Write the best one where nothing meets the budget; exit with 1.")
@batch_option()
@threads_option
@click.option(
    "--shape",
    default="1x128",
    show_default=True,
    metavar="BATCHxLENGTH",
    type=SHAPE,
    cls=SectionOption,
    section="Running",
    help="What is timed; nothing is for tensorrt.",
)
@_output("--float-embeddings", is_flag=True, help="Leave the embeddings' tables in float in the file.")
@click.option("--force", is_flag=True, help="Replace OUT if it holds what qdqpatch wrote.")
@json_option
@code_option
@verbosity_options
def command(
    ckpt: str,
    out: Path,
    target: str,
    cpu: Cpu | None,
    placement: Placement,
    data: Data,
    samples: int,
    held_back: int | None,
    seed: int,
    max_drop: float | None,
    seconds: float | None,
    keep_best: bool,
    batch_size: int,
    threads: int | None,
    shape: Shape,
    float_embeddings: bool,
    force: bool,
    as_json: bool,
    console: Console,
) -> None:
    """Make the best int8 model of the float checkpoint CKPT for one engine, and write it to the folder OUT.

    What is quantized follows from the engine and the head. Then steps are tried, the cheapest first: ranges;
    shifting and smoothing; rounded weights; refined ranges; tuning for what the model returns; units left in
    float; distillation on the texts. Each is judged in the engine, on texts held back, and the first one
    that meets the budget is taken. Its speed is measured beside the float model's in the same engine.

    OUT has the checkpoint and the exported file, as servers look for them, and the results in qdqpatch.json.
    """
    from qdqpatch.checkpoint.companions import read_companions
    from qdqpatch.checkpoint.sentence_head import load_sentence_head
    from qdqpatch.checkpoint.source import open_checkpoint
    from qdqpatch.distributed import from_first
    from qdqpatch.engines.device import to_fastest_device
    from qdqpatch.optimizing.dividing import divide
    from qdqpatch.optimizing.engine import Place
    from qdqpatch.optimizing.optimize import search_best
    from qdqpatch.output.folder import OutputFolder
    from qdqpatch.tasks.pairs import Pair

    with console.status(f"Reading {ckpt}"):
        source = open_checkpoint(ckpt, data.task)
        companions = read_companions(ckpt)
    if source.quantization is not None:
        raise QuantizedError(f"{ckpt} is quantized already: optimize begins with the float checkpoint.")
    embeddings = target != "tensorrt" and not float_embeddings
    place = Place.of(target, threads, cpu=cpu, int8_embeddings=embeddings)
    output = OutputFolder.open(out, inputs(), force)
    config = placement()
    source.check_weights()
    with console.status(f"Reading {data.source.name}"):
        task = data.make_task(ckpt, source.config)
        examples, reason = task.read_any(data.source)
        has_labels = reason is None and (task.needs_labels or isinstance(examples[0], Pair))
        texts = divide(examples, held_back, samples, seed)
    with console.status(f"Loading {ckpt}"):
        model, missing = source.load()
    if missing:
        console.print(f"Warning: {ckpt} lacks these weights, which are random now: {', '.join(missing)}")
    with CalibrationBar(console) as bar:
        found = search_best(
            to_fastest_device(model),
            task,
            texts,
            labelled=has_labels,
            place=place,
            budget_percent=max_drop,
            seconds=seconds,
            config=config,
            batch_size=batch_size,
            shape=shape,
            head=load_sentence_head(companions),
            listener=bar,
        )
    # Before anything is written: that may fail, and what was found took long.
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _print(found, shape)
    for warning in found.warnings:
        console.print(f"Warning: {warning}")
    if found.met or keep_best:
        # The others wait: a launcher ends all processes when one fails, as all do if the budget is missed.
        length = None if task.unit == "images" else task.max_length
        used = {"samples": found.calibrated, "seed": seed, "max_length": length}
        from_first(lambda: _write(found, place, ckpt, output, companions, data, used, console), model.device)
    if not found.met:
        kept = f"The best one is in {out}." if keep_best else "To have the best one written: --keep-best."
        raise click.ClickException(f"{found.conclusion()} {kept}")


def _write(
    found: Optimization,
    place: Place,
    ckpt: str,
    output: OutputFolder,
    companions: Companions,
    data: Data,
    used: Mapping[str, Any],
    console: Console,
) -> None:
    """Write checkpoint, exported file and record to OUT, all or nothing, and say so."""
    from qdqpatch.exporter.export import prepare_export
    from qdqpatch.exporter.options import ExportOptions
    from qdqpatch.output.record import data_record, write_record

    model: PreTrainedModel = found.model  # type: ignore[assignment]  # a copy of what was loaded
    options = ExportOptions(tokenizer=tokenizer(ckpt), source=ckpt, **place.options)
    write = prepare_export(model, place.target, options)
    with output.staged() as folder, console.status(f"Writing {output.given}"):
        model.save_pretrained(folder)
        companions.copy(folder)
        write_record(
            model,
            folder,
            calibration={**found.settings, **used},
            data=data_record(data.source.name),
            optimization=found.to_dict(),
        )
        exported = write(folder, output.given)
    print_export(exported, console)
    if place.target == "tensorrt":
        console.print(f"What TensorRT makes of it: qdqpatch lint {exported.file} --target tensorrt --build")


def _print(found: Optimization, shape: Shape) -> None:
    columns, rows = found.table()
    title = (
        f"{found.target} ({found.placement}), judged in {found.engine} on "
        f"{counted(found.held_back, 'text')}, calibrated with {found.calibrated}; "
    )
    timed = f"ms and speed at {shape}, beside float in the same engine"
    print_text(title + (timed if "ms" in columns else "not timed, which takes a GPU"))
    print_table("", columns, rows, numbers=("Seconds", "ms", "Speed"))
    print_text(found.conclusion())
