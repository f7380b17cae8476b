"""`qdqpatch bench`: how fast models are, how large, and how long they take to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qdqpatch.cli.common import code_option, progress_bar, verbosity_options
from qdqpatch.cli.options import bench_engine_option, json_option, threads_option
from qdqpatch.cli.places import inputs
from qdqpatch.cli.sections import SectionCommand, SectionOption
from qdqpatch.cli.shapes import SHAPE
from qdqpatch.cli.tables import print_table, print_text
from qdqpatch.engines.shapes import DEFAULT_SHAPES, Shape

if TYPE_CHECKING:
    from rich.console import Console

    from qdqpatch.bench.report import Benchmark


@click.command(
    "bench", cls=SectionCommand, short_help="Measure latency, throughput, size and memory side by side."
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@bench_engine_option
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    cls=SectionOption,
    section="Running",
    metavar="BATCHxLENGTH",
    type=SHAPE,
    help="How many sequences a run takes, and of how many tokens. Can be repeated.  "
    f"[default: {', '.join(map(str, DEFAULT_SHAPES))}, cut to the longest that the models take]",
)
@threads_option
@click.option(
    "--rounds",
    cls=SectionOption,
    section="Running",
    default=20,
    show_default=True,
    type=click.IntRange(min=1),
    help="How many turns each model has at each shape; of the 4 runs of a turn 3 are timed.",
)
@click.option(
    "--warmup",
    cls=SectionOption,
    section="Running",
    default=1,
    show_default=True,
    type=click.IntRange(min=0),
    help="How many such turns each has before, which do not count.",
)
@click.option(
    "--iterations",
    cls=SectionOption,
    section="Running",
    type=click.IntRange(min=1),
    help="How many runs of each are timed at each shape, in place of --rounds; rounded up to whole turns.",
)
@json_option
@click.option(
    "--plot",
    cls=SectionOption,
    section="Output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw a bar chart of the latencies into FILE (.png or .svg); an earlier chart is replaced.",
)
@code_option
@verbosity_options
def command(
    models: tuple[str, ...],
    engines: tuple[str, ...],
    shapes: tuple[Shape, ...],
    threads: int | None,
    rounds: int,
    warmup: int,
    iterations: int | None,
    as_json: bool,
    plot: Path | None,
    console: Console,
) -> None:
    """Measure MODELs side by side: latency, throughput, load time, size and memory.

    A MODEL is a checkpoint, float or quantized (runs in torch); a folder with an exported onnx/model.onnx or
    openvino/openvino_model.xml; or an .onnx or .xml file. Speed-ups are over the first one, in the first
    engine that runs it.

    All of them run in one process and in turns, so that a machine that is slow for a while is slow for all.
    Inputs are random tokens without padding. p50 is the median latency of a run; 9 of 10 runs stay within
    p90 and 99 of 100 within p99; Seq/s follows from p50. Below the table is whether an exported file gives a
    text the same alone and in a batch. To compare int8 with float in one engine, write the float model for
    it too: qdqpatch export CKPT FLOAT --float.

    Load time and memory are measured in a process for each: the load time without imports and with the files
    in the page cache, the memory at its peak in loading and one run of the largest shape, less what the
    imports take. Size is that of graph and weights.
    """
    from qdqpatch.bench.chart import write_chart
    from qdqpatch.bench.side_by_side import compare
    from qdqpatch.report.figures import check_can_plot

    if plot is not None:
        check_can_plot(plot, inputs())
    bar = progress_bar(console, auto_refresh=False)  # a thread that draws would take time from what is timed
    task = bar.add_task("Reading", total=None)

    def show(text: str, done: int, total: int) -> None:
        bar.update(task, description=text, completed=done, total=total, refresh=True)

    with bar:
        report = compare(
            models,
            shapes=shapes,
            engines=engines,
            threads=threads,
            rounds=rounds,
            warmup=warmup,
            iterations=iterations,
            step=show,
        )
    for refusal in report.skipped:
        console.print(f"Skipped {refusal.model} in {refusal.engine}: {refusal.reason}")
    if plot is not None:
        write_chart(plot, report)
        console.print(f"Wrote {plot}.")
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _print_report(report)


def _print_report(report: Benchmark) -> None:
    """Print the table and the lines below it."""
    from qdqpatch.bench.report import COLUMNS, NUMBERS

    print_table(report.title, COLUMNS, report.table(), NUMBERS)
    for line in report.footnotes():
        print_text(line)
