"""`qdqpatch sensitivity`: what quantizing each part of a model costs, and which parts to leave in float."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qdqpatch.cli.common import code_option, placement_options, progress_bar, verbosity_options
from qdqpatch.cli.data import Data, data_options
from qdqpatch.cli.numbers import NOT_NEGATIVE
from qdqpatch.cli.options import SEED, batch_option, json_option
from qdqpatch.cli.places import inputs
from qdqpatch.cli.sections import SectionCommand, SectionOption
from qdqpatch.cli.tables import print_table, print_text
from qdqpatch.errors import CalibrationError, ConfigError, DataError, QuantizedError, no_range
from qdqpatch.spelling import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from transformers import PreTrainedModel

    from qdqpatch.config.config import QDQConfig
    from qdqpatch.sensitivity import MixedPrecision, Sensitivity
    from qdqpatch.sensitivity.subject import Step
    from qdqpatch.tasks.base import DataSource, Task

CALIBRATION = 256
"""So many examples calibrate a float checkpoint."""

_data = functools.partial(click.option, cls=SectionOption, section="Data")
_mixing = functools.partial(click.option, cls=SectionOption, section="Mixed precision")
_output = functools.partial(click.option, cls=SectionOption, section="Output")


@click.command("sensitivity", cls=SectionCommand, short_help="Find the parts of a model to leave in float.")
@click.argument("ckpt")
@placement_options
@data_options
@_data(
    "--samples",
    default=512,
    show_default=True,
    type=click.IntRange(min=1),
    help="How many examples to draw at random; all if there are fewer.",
)
@_data("--seed", type=SEED, default=0, show_default=True, help="Another seed draws other examples.")
@batch_option()
@_output(
    "--metric",
    "by_metric",
    is_flag=True,
    help="Rank by the drop of the task's main metric, which needs labels and many samples, and not by the "
    "divergence of the outputs.",
)
@_mixing(
    "--max-drop",
    metavar="PERCENT",
    type=NOT_NEGATIVE,
    help="Find units to leave in float, as few as possible, for the task's main metric to be worse than the "
    "float model's by at most so many percent of it; without labels, for at most so many percent of the "
    "predictions to change.",
)
@_mixing(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write what was found as a QDQConfig for `qdqpatch convert --config FILE`; for one that "
    "is there see --force.",
)
@click.option("--force", is_flag=True, help="Replace the FILE of --out, if it is one that qdqpatch wrote.")
@json_option
@_output(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the costs and what --max-drop tried into FILE (.png or .svg); an earlier chart is replaced.",
)
@code_option
@verbosity_options
def command(
    ckpt: str,
    placement: Callable[[], QDQConfig | None],
    data: Data,
    samples: int,
    seed: int,
    batch_size: int,
    by_metric: bool,
    max_drop: float | None,
    out: Path | None,
    force: bool,
    as_json: bool,
    plot: Path | None,
    console: Console,
) -> None:
    """Rank the parts of CKPT by what quantizing each costs, and find those to leave in float.

    The parts are the units that engines fuse: an attention, a feed-forward, a residual add; and embeddings,
    pooler and head if they are quantized. The cost of a unit is how far the outputs get from the float
    model's when it alone is quantized; that needs no labels.

    A float CKPT is quantized and calibrated on the data first, 256 examples without their labels.
    """
    from qdqpatch.calibration.observing import HELD_BACK
    from qdqpatch.calibration.ptq import ptq
    from qdqpatch.checkpoint.source import open_checkpoint
    from qdqpatch.distributed import is_first, share
    from qdqpatch.engines.device import to_fastest_device
    from qdqpatch.evaluation.predicting import batches
    from qdqpatch.report.figures import check_can_plot
    from qdqpatch.sensitivity import measure, search
    from qdqpatch.sensitivity.chart import write_chart
    from qdqpatch.sensitivity.config_file import check_config_file
    from qdqpatch.tasks.agreement import UNCHANGED
    from qdqpatch.tasks.base import draw

    if out is not None and max_drop is None:
        raise click.UsageError("--out writes what --max-drop finds, and needs it.")
    read = inputs()
    if plot is not None:
        check_can_plot(plot, read)
    if out is not None:
        check_config_file(out, force, read)
    with console.status(f"Reading {ckpt}"):
        source = open_checkpoint(ckpt, data.task)
    config = placement()
    if config is not None and source.quantization is not None:
        raise QuantizedError(f"{ckpt} is quantized already, so its placement is not an option's to change.")
    source.check_weights()
    with console.status(f"Reading {data.source.name}"):
        task = data.make_task(ckpt, source.config)
        everything, labelled, reason = _read(task, data.source, by_metric, max_drop is not None)
        examples = draw(everything, samples, seed)
        if labelled:
            task.check_labels(examples)
    with console.status(f"Loading {ckpt}"):
        model, missing = source.load()
        to_fastest_device(model)
    if missing:
        console.print(f"Warning: {ckpt} lacks these weights, which are random now: {', '.join(missing)}")
    if source.quantization is None:
        chosen = draw(everything, CALIBRATION, seed)
        with console.status(f"Calibrating with {len(chosen)} of {counted(len(everything), 'example')}"):
            features = share(task.features(chosen), HELD_BACK * batch_size)
            ptq(model, batches(task, features, batch_size, model), config)
        console.print(f"Calibrated with {len(chosen)} of {counted(len(everything), 'example')} of the data.")
    _check_calibrated(ckpt, model)
    with progress_bar(console) as bar:
        step = _stepping(bar)
        costs = measure(model, task, examples, by_metric=by_metric, batch_size=batch_size, step=step)
        found = None
        if max_drop is not None:
            found = search(
                model, task, examples, costs, max_drop, labelled=labelled, batch_size=batch_size, step=step
            )
    if not is_first():
        return
    if found is not None and reason is not None:
        way = "counts predictions that change" if found.metric == UNCHANGED else f"goes by the {found.metric}"
        console.print(f"There are no labels, so --max-drop {way}. ({reason})")
    if plot is not None:
        write_chart(plot, costs, found)
        console.print(f"Wrote {plot}.")
    if as_json:
        mixed = None if found is None else found.to_dict()
        click.echo(json.dumps({"checkpoint": ckpt, "costs": costs.to_dict(), "search": mixed}, indent=2))
    else:
        _print_report(costs, found)
    if found is not None:
        _finish(found, out, force, console)


def _read(
    task: Task[Any], source: DataSource, by_metric: bool, with_search: bool
) -> tuple[list[Any], bool, DataError | None]:
    """Return all examples, whether they have labels, and if those are wanted and not there, why."""
    if not by_metric and not with_search:
        return task.read(source, labelled=False), False, None
    if by_metric:
        return task.read(source), True, None
    examples, reason = task.read_any(source)
    return examples, reason is None, reason


def _check_calibrated(ckpt: str, model: PreTrainedModel) -> None:
    from qdqpatch.patching.apply import enabled_quantizers, without_range

    if unset := without_range(enabled_quantizers(model)):
        remedy = "Convert it again with --calib, or name the float checkpoint, which is calibrated here."
        raise CalibrationError(f"{ckpt} is not calibrated: {no_range(unset, remedy)}")


def _stepping(bar: Progress) -> Step:
    """Return what moves the bar; ranking and searching have one each."""
    tasks: dict[str, Any] = {}

    def step(text: str, done: int, total: int) -> None:
        if text not in tasks:
            tasks[text] = bar.add_task(text)
        bar.update(tasks[text], completed=done, total=total)

    return step


def _print_report(costs: Sensitivity, found: MixedPrecision | None) -> None:
    from qdqpatch.sensitivity.report import (
        COST_COLUMNS,
        conclusion,
        cost_rows,
        cost_title,
        departure,
        trial_columns,
        trial_rows,
        unresolved,
    )

    print_table(cost_title(costs), COST_COLUMNS, cost_rows(costs))
    if found is not None:
        title = f"Drop of at most {found.max_drop:g}%, {counted(found.examples, 'example')}"
        print_table(title, trial_columns(found), trial_rows(found))
        if found.config is not None:
            print_text(conclusion(found))
        for line in filter(None, (departure(costs, found), unresolved(found))):
            print_text(line)


def _finish(found: MixedPrecision, out: Path | None, force: bool, console: Console) -> None:
    """Write the configuration, or fail if there is none."""
    from qdqpatch.sensitivity.config_file import write_config_file
    from qdqpatch.sensitivity.report import conclusion

    if found.config is None:
        raise ConfigError(conclusion(found))
    if out is not None:
        write_config_file(out, found.config, force)
        console.print(
            f"Wrote {out}, for: qdqpatch convert FLOAT_CKPT OUT --config {out} --calib FILE", markup=False
        )
