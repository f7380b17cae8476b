"""`qdqpatch eval`: what models are worth on data, and how far they fall behind the first one."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from qdqpatch.cli.common import code_option, progress_bar, verbosity_options
from qdqpatch.cli.data import Data, data_options
from qdqpatch.cli.numbers import NOT_NEGATIVE
from qdqpatch.cli.options import SEED, engine_option, json_option, threads_option
from qdqpatch.cli.sections import SectionCommand, SectionOption
from qdqpatch.cli.tables import print_table, print_text
from qdqpatch.spelling import form

if TYPE_CHECKING:
    from rich.console import Console

    from qdqpatch.evaluation.result import Evaluation, EvaluationRow

_option = functools.partial(click.option, cls=SectionOption)


@click.command("eval", cls=SectionCommand, short_help="Compare metrics of models on the same data.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@data_options
@_option(
    "--samples",
    section="Data",
    type=click.IntRange(min=1),
    help="How many examples to draw at random.  [default: all]",
)
@_option(
    "--seed",
    section="Data",
    type=SEED,
    default=0,
    show_default=True,
    help="Another seed draws other examples, masks other tokens, and resamples others for the interval.",
)
@engine_option
@_option(
    "--batch-size",
    section="Running",
    default=32,
    show_default=True,
    type=click.IntRange(min=1),
    help="How many sequences run at once; a graph that is made for another number gets that one.",
)
@threads_option
@_option(
    "--max-drop",
    section="Output",
    metavar="PERCENT",
    type=NOT_NEGATIVE,
    help="Exit with 1 if the main metric of any model is worse than the first one's by more than PERCENT of "
    "it (of perplexity, if it is higher).",
)
@json_option
@code_option
@verbosity_options
def command(
    models: tuple[str, ...],
    data: Data,
    samples: int | None,
    seed: int,
    engines: tuple[str, ...],
    batch_size: int,
    threads: int | None,
    max_drop: float | None,
    as_json: bool,
    console: Console,
) -> None:
    """Compute the same metrics of all MODELs on the same data, and their differences to the first one.

    A MODEL is a checkpoint, float or quantized (runs in torch); a folder with an exported onnx/model.onnx or
    openvino/openvino_model.xml; or an .onnx or .xml file. A folder with several of these gives several rows.

    All models get the same tokens. Labels and tokenizer are those of the first MODEL that has them; an
    exported folder has them beside the file. Differences are in the metric's own units and come with a 95%
    confidence interval: one that holds 0 means that these examples cannot tell the two models apart.

    The outputs are compared with those of the first MODEL too, which needs no labels.
    """
    from qdqpatch.evaluation.evaluate import evaluate

    bar = progress_bar(console)
    task = bar.add_task("Reading", total=None)
    with bar:
        evaluation = evaluate(
            models,
            data.task,
            replace(data.source, split=_split(data)),
            samples,
            seed=seed,
            max_length=data.max_length,
            options=data.options,
            batch_size=batch_size,
            engines=engines,
            threads=threads,
            step=lambda text, done, total: bar.update(task, description=text, completed=done, total=total),
        )
    for refusal in evaluation.skipped:
        console.print(f"Skipped {refusal.model} in {refusal.engine}: {refusal.reason}")
    if not evaluation.labelled and len(evaluation.rows) > 1:
        console.print(f"Without labels, models are compared with {evaluation.rows[0].name}.")
    if as_json:
        click.echo(json.dumps(evaluation.to_dict(), indent=2))
    else:
        _print_evaluation(evaluation)
    if max_drop is not None:
        _check_drop(evaluation, max_drop)


def _split(data: Data) -> str | None:
    """Return the split: what a model was trained on says little of it, so that is not the default."""
    from qdqpatch.data.named import has_splits

    return data.source.split or ("validation" if has_splits(data.source.name) else None)


def _print_evaluation(evaluation: Evaluation) -> None:
    from qdqpatch.evaluation.bootstrap import CONFIDENCE, RESAMPLES

    names = list(evaluation.rows[0].metrics)
    notes = list(dict.fromkeys(row.note for row in evaluation.rows if row.note))
    compared = len(evaluation.rows) > 1
    columns = ["Model", "Engine", *names, *(["Difference", "Drop %"] if compared else []), "Seconds"]
    rows = []
    for row in evaluation.rows:
        mark = f" ({notes.index(row.note) + 1})" if row.note else ""
        figures = [str(metric) for metric in row.metrics.values()]
        differences = _differences(row, evaluation.metric) if compared else []
        rows.append([row.model, row.engine + mark, *figures, *differences, f"{row.seconds:.1f}"])
    count = f"{evaluation.examples:,} {form(evaluation.examples, 'example')}"
    print_text(f"{evaluation.task}, {count} of {evaluation.data}")  # a table's title would be as narrow
    print_table("", columns, rows)
    for number, note in enumerate(notes, start=1):
        print_text(f"({number}) {note}")
    if compared:
        print_text(
            f"Difference: of {evaluation.metric} to {evaluation.rows[0].name}, with the {CONFIDENCE:.0%} "
            f"confidence interval by a paired bootstrap over the examples ({RESAMPLES} resamples)."
        )
    if any(row.closeness for row in evaluation.rows):
        click.echo()
        title = f"How close to {evaluation.rows[0].name}, with the {CONFIDENCE:.0%} confidence interval"
        print_table(title, ("Model", "Engine", "Figure", "Value"), _close(evaluation))
    for row in evaluation.rows:
        if row.exactness is not None:
            print_text(f"{row.name}: {row.exactness}")


def _close(evaluation: Evaluation) -> list[list[str]]:
    """Return a row for each figure of each model but the first."""
    return [
        [row.model, row.engine, figure.metric.name, str(figure)]
        for row in evaluation.rows
        for figure in reversed(row.closeness)
    ]


def _differences(row: EvaluationRow, metric: str) -> list[str]:
    """Return difference and drop, with as many digits as the metric itself has."""
    if row.difference is None:
        return ["", ""]
    from qdqpatch.tasks.metrics import decimal

    digits = row.metrics[metric].digits
    ends = [decimal(end, digits, "+") for end in row.difference.interval or ()]
    interval = f" [{', '.join(ends)}]" if ends else ""
    drop = row.difference.drop
    return [decimal(row.difference.value, digits, "+") + interval, "-" if drop is None else f"{drop:.2f}"]


def _check_drop(evaluation: Evaluation, percent: float) -> None:
    """Raise a `ClickException` if a model falls too far behind."""
    first, *others = evaluation.rows
    if not others:
        raise click.ClickException(f"--max-drop compares models, and {first.name} is the only one.")
    before = first.metrics[evaluation.metric]
    verb = "falls" if before.higher_is_better else "rises"
    behind = [
        f"{row.name} by {row.difference.drop:.2f}% (from {before} to {row.metrics[evaluation.metric]})"
        for row in evaluation.behind(percent)
        if row.difference is not None
    ]
    if behind:
        raise click.ClickException(
            f"{evaluation.metric} {verb} more than the {percent:g}% of --max-drop: {', '.join(behind)}."
        )
