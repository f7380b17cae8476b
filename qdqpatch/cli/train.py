"""`qdqpatch train`: quantization-aware training of a checkpoint."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from qdqpatch.choices import METHODS, ActivationRanges, Method, WeightRanges
from qdqpatch.cli.common import Placement, code_option, placement_options, progress_bar, verbosity_options
from qdqpatch.cli.data import Data, data_options
from qdqpatch.cli.numbers import NOT_NEGATIVE, POSITIVE, Number
from qdqpatch.cli.options import EPOCHS, SEED
from qdqpatch.cli.places import inputs
from qdqpatch.cli.sections import SectionCommand, SectionOption
from qdqpatch.cli.tables import print_table
from qdqpatch.errors import CheckpointError
from qdqpatch.listening import TrainingListener
from qdqpatch.spelling import counted
from qdqpatch.training.job import Job, TrainingReport
from qdqpatch.training.schedule import Schedule

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_schedule = functools.partial(click.option, cls=SectionOption, section="Schedule", show_default=True)
_teacher = functools.partial(click.option, cls=SectionOption, section="Distillation")
_ranges = functools.partial(click.option, cls=SectionOption, section="Quantization", show_default=True)
_calibration = functools.partial(click.option, cls=SectionOption, section="Calibration", show_default=True)


@click.command("train", cls=SectionCommand, short_help="Train the int8 form of a checkpoint.")
@click.argument("ckpt")
@click.argument("out", type=click.Path(path_type=Path))
@data_options
@click.option(
    "--eval-data",
    metavar="FILE|NAME",
    cls=SectionOption,
    section="Data",
    help="What the metric is computed on; of a hub data set, its split validation.  [default: a tenth of the "
    "data, at most 1000, held out]",
)
@click.option(
    "--eval-samples",
    type=click.IntRange(min=1),
    cls=SectionOption,
    section="Data",
    help="Evaluate on so many examples, drawn at random.  [default: all]",
)
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    cls=SectionOption,
    section="Data",
    help="Another seed gives another order of the data, and holds out others.",
)
@_schedule("--epochs", default=Schedule.epochs, type=POSITIVE, help="Passes over the data.")
@_schedule("--lr", default=Schedule.lr, type=POSITIVE, help="The highest learning rate.")
@_schedule(
    "--batch-size", default=Schedule.batch_size, type=click.IntRange(min=1), help="Sequences in a step."
)
@_schedule(
    "--accumulate", default=1, type=click.IntRange(min=1), help="Batches whose gradients make one step."
)
@_schedule(
    "--warmup",
    default=Schedule.warmup,
    type=Number(0, 1, max_open=True),
    help="The share of the steps in which the rate rises; after that it falls as a cosine.",
)
@_schedule("--weight-decay", default=0.0, type=NOT_NEGATIVE, help="Decay of matrices.")
@_schedule("--dropout", is_flag=True, show_default=False, help="Leave the model's dropout on.")
@_schedule("--bf16", is_flag=True, show_default=False, help="Compute in bf16 what is not quantized.")
@_teacher("--distill", is_flag=True, help="Learn from the float model's outputs; labels are not needed then.")
@_teacher(
    "--teacher", metavar="CKPT", help="The float model to learn from.  [default: CKPT without quantizers]"
)
@_teacher(
    "--temperature",
    type=POSITIVE,
    help="Divides the logits of both models.  [default: 4 for classes of texts and choices, else 1]",
)
@_teacher(
    "--hidden-states",
    default=0.0,
    show_default=True,
    type=NOT_NEGATIVE,
    metavar="WEIGHT",
    help="Weight of the difference of hidden states, beside that of the outputs, which is 1.",
)
@_teacher(
    "--attentions",
    default=0.0,
    show_default=True,
    type=NOT_NEGATIVE,
    metavar="WEIGHT",
    help="Weight of the difference of attention probabilities.",
)
@_teacher(
    "--labels",
    default=0.0,
    show_default=True,
    type=NOT_NEGATIVE,
    metavar="WEIGHT",
    help="Weight of the labels' own loss.",
)
@_ranges(
    "--activation-ranges",
    default="lsq",
    type=click.Choice(get_args(ActivationRanges)),
    help="frozen: as calibrated; lsq: learned by the gradient of the step size; clip: by that of what is "
    "clipped.",
)
@_ranges(
    "--weight-ranges",
    default="follow",
    type=click.Choice(get_args(WeightRanges)),
    help="frozen: as calibrated; follow: the largest weights as they are.",
)
@_calibration(
    "--method",
    default="auto",
    type=click.Choice(METHODS),
    help="How a float CKPT is calibrated, on 256 sequences of the data, before it is trained.",
)
@_calibration(
    "--shift/--no-shift",
    default=Job.shift,
    help="Before that, move the channels of its values and LayerNorms around zero, as convert --shift does.",
)
@_calibration(
    "--smooth-inputs/--no-smooth-inputs",
    default=None,
    show_default=False,
    help="Before that, multiply what its Linears read, as convert --smooth-inputs does.  [default: for "
    "embedders]",
)
@_calibration(
    "--smooth-residuals/--no-smooth-residuals",
    default=None,
    show_default=False,
    help="Before that, multiply what its residual adds read, as convert --smooth-residuals does.  [default: "
    "for embedders]",
)
@_calibration(
    "--refine",
    default=Job.refine,
    type=EPOCHS,
    metavar="EPOCHS",
    help="After that, let its ranges learn to keep the layers' outputs for so many epochs; 0 for none.",
)
@placement_options
@click.option("--resume", is_flag=True, help="Go on with the interrupted run of the same options.")
@click.option(
    "--force", is_flag=True, help="Replace OUT if it holds what qdqpatch wrote, and an interrupted run."
)
@code_option
@verbosity_options
def command(
    ckpt: str,
    out: Path,
    data: Data,
    eval_data: str | None,
    eval_samples: int | None,
    distill: bool,
    teacher: str | None,
    activation_ranges: ActivationRanges,
    weight_ranges: WeightRanges,
    method: Method,
    shift: bool,
    smooth_inputs: bool | None,
    smooth_residuals: bool | None,
    refine: int,
    placement: Placement,
    resume: bool,
    force: bool,
    console: Console,
    **settings: Any,
) -> None:
    """Train the int8 form of CKPT, and save it to the folder OUT.

    A float CKPT is quantized and calibrated first; one that `convert` calibrated is taken as it is. Then it
    is trained with its quantizers on, for a tenth of the usual schedule. The task's metric is given for the
    float, the calibrated and the trained model. Learning from the float model (--distill) usually gains most.

    While it runs, checkpoints are in OUT.training; an interrupted run goes on with --resume.
    """
    from qdqpatch.training.distillation import Distillation
    from qdqpatch.training.folder import can_resume
    from qdqpatch.training.run import run_job

    parts = {name: settings.pop(name) for name in ("temperature", "hidden_states", "attentions", "labels")}
    if not distill:
        _refuse_without_distill()
    job = Job(
        ckpt=ckpt,
        data=data.source,
        eval_data=None if eval_data is None else data.to_evaluate_on(eval_data),
        task=data.task,
        max_length=data.max_length,
        options=data.options,
        eval_samples=eval_samples,
        teacher=teacher,
        distillation=Distillation(**parts) if distill else None,
        schedule=Schedule(**settings),
        config=placement(),
        method=method,
        shift=shift,
        smooth_inputs=smooth_inputs,
        smooth_residuals=smooth_residuals,
        refine=refine,
        activations=activation_ranges,
        weights=weight_ranges,
    )
    was_there = can_resume(out)
    bar = progress_bar(console)
    with bar:
        try:
            report = run_job(job, out, resume, force, _Bar(bar, console), inputs())
        except (KeyboardInterrupt, SystemExit, CheckpointError) as error:
            if can_resume(out) and not (was_there and isinstance(error, CheckpointError)):
                console.print("Interrupted. The same command with --resume goes on from the last checkpoint.")
            raise
    _print_report(report)
    console.print(f"Wrote {out}.")


def _refuse_without_distill() -> None:
    """Refuse options of distillation that would do nothing."""
    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(str(option.name)) is not click.core.ParameterSource.DEFAULT
        if getattr(option, "section", None) == "Distillation" and option.name != "distill" and given:
            raise click.UsageError(f"{option.opts[0]} is for learning from the float model: add --distill.")


class _Bar(TrainingListener):
    """Shows how a job goes on: a bar on a terminal, a line for each step elsewhere."""

    def __init__(self, bar: Progress, console: Console) -> None:
        self._bar, self._console = bar, console
        self._task = bar.add_task("", total=None)

    def say(self, text: str) -> None:
        """Begin a step."""
        self._bar.reset(self._task, total=None, description=text)
        if not self._console.is_terminal:
            self._console.print(text)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._console.print(f"Warning: {text}")

    def step(self, done: int, total: int, loss: float | None = None) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=done, total=total)


def _print_report(report: TrainingReport) -> None:
    """Print a row for each stage, with its difference to the float model."""
    names = list(report.stages[0].metrics)
    first = report.stages[0].metrics
    from qdqpatch.tasks.metrics import decimal

    digits = {name: report.stages[0].digits.get(name, 2) for name in names}
    rows = []
    for stage in report.stages:
        cells = [decimal(stage.metrics[name], digits[name]) for name in names]
        difference = stage.metrics[names[-1]] - first[names[-1]]
        rows.append(
            (
                stage.name,
                *cells,
                "" if stage is report.stages[0] else decimal(difference, digits[names[-1]], "+"),
                _time(stage.seconds),
            )
        )
    title = f"On {counted(report.examples, 'example')}{' held out' if report.held_out else ''}"
    print_table(title, ("model", *names, "to float", "time"), rows)


def _time(seconds: float) -> str:
    return "" if not seconds else f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
