"""What options that several commands have share, so that one name means one thing everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import click

from qdqpatch.choices import CPUS, GPU_RUNNERS, RUNNERS, TARGETS
from qdqpatch.cli.sections import SectionOption

COUNT = click.IntRange(min=1)
LENGTH = click.IntRange(min=4)
SEED = click.IntRange(0, 2**32 - 1)
EPOCHS = click.IntRange(min=0)

json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    cls=SectionOption,
    section="Output",
    help="Print JSON instead of tables.",
)

batch_option = functools.partial(
    click.option,
    "--batch-size",
    default=16,
    show_default=True,
    type=COUNT,
    cls=SectionOption,
    section="Running",
    help="Sequences that run through the model at once.",
)


def _engine_option(runners: Sequence[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--engine",
        "engines",
        multiple=True,
        cls=SectionOption,
        section="Running",
        type=click.Choice(runners),
        help="Run in this engine alone. Can be repeated; the default is every one that is installed and "
        "loads the MODEL.",
    )


engine_option = _engine_option(RUNNERS)

bench_engine_option = _engine_option((*RUNNERS, *GPU_RUNNERS))
"""With the engines that need a GPU; they are left out where there is none, unless asked for."""

threads_option = click.option(
    "--threads",
    cls=SectionOption,
    section="Running",
    type=COUNT,
    help="How many threads a run may use.  [default: one for each core]",
)

target_option = functools.partial(
    click.option, "--target", type=click.Choice(TARGETS), default="onnxruntime", show_default=True
)
"""The caller adds the help."""

cpu_option = click.option(
    "--cpu",
    type=click.Choice(CPUS),
    help="What will run the file: x86 with VNNI or without (avx2), or Arm; the default is this machine. A "
    "file for avx2 is exact everywhere, but slower where there is VNNI.",
)

SPLIT_HELP = "The split of a data set that has some.  [default: train; for eval, validation]"

COLUMN_HELP = "The column with the texts. The default is a usual name, such as text or sentence1."
