"""The options that name a task and its labelled data, for the commands that train and evaluate."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from qdqpatch.choices import MEASURED_TASKS
from qdqpatch.cli.common import Command
from qdqpatch.cli.numbers import Finite
from qdqpatch.cli.options import COLUMN_HELP, LENGTH, SPLIT_HELP
from qdqpatch.cli.sections import SectionOption

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from qdqpatch.tasks.base import DataSource, Task

_option = functools.partial(click.option, cls=SectionOption, section="Data")

OPTIONS = (
    _option(
        "--task",
        type=click.Choice(MEASURED_TASKS),
        metavar="TASK",
        help=f"What the model does: {', '.join(MEASURED_TASKS)}.  [default: what the checkpoint's head does]",
    ),
    _option(
        "--data",
        metavar="FILE|NAME",
        required=True,
        help="The data: a file (.csv, .tsv, .jsonl, .parquet; SQuAD's .json for question answering; .conll "
        "for token classification; .txt where no labels are needed), also gzipped (.gz); a folder with a "
        "data set (save_to_disk), or for image classification with images. A NAME that is neither is a data "
        "set on the Hugging Face hub.",
    ),
    _option("--text-column", metavar="COLUMN", help=COLUMN_HELP),
    _option(
        "--text-pair-column",
        metavar="COLUMN",
        help="The column with the second texts, for models that read two together.",
    ),
    _option(
        "--label-column", metavar="COLUMN", help="The column with the labels, if its name is not a usual one."
    ),
    _option("--split", help=SPLIT_HELP),
    _option("--subset", help="The subset (config) of a hub data set, such as sst2 of nyu-mll/glue."),
    _option(
        "--max-length",
        type=LENGTH,
        help="Where sequences are cut, in tokens; for question answering, the length of a window.  "
        "[default: 384 for question answering, else 128; at most what the model takes]",
    ),
    _option(
        "--doc-stride",
        "stride",
        type=click.IntRange(min=1),
        help="For question answering: by how many tokens the windows of a long text overlap.  [default: 128]",
    ),
    _option(
        "--max-answer-length",
        "longest_answer",
        type=click.IntRange(min=1),
        help="For question answering: how many tokens an answer can have.  [default: 30]",
    ),
    _option(
        "--no-answer",
        is_flag=True,
        help="For question answering: a question may have no answer in its text, as in SQuAD v2.",
    ),
    _option(
        "--null-threshold",
        type=Finite(),
        help="With --no-answer: by how much the logits of no answer must be above those of the best one.  "
        "[default: 0]",
    ),
)


@dataclass(frozen=True)
class Data:
    """What the options say.

    Attributes:
        task: One of `MEASURED_TASKS`; None for what the checkpoint's head is for.
        source: The data.
        max_length: Where sequences are cut; None for the task's default.
        options: What else is set, by the names in the task's `options`.
    """

    task: str | None
    source: DataSource
    max_length: int | None
    options: Mapping[str, float]

    def make_task(self, ckpt: str, config: PreTrainedConfig) -> Task[Any]:
        """Return the task of a checkpoint, with its tokenizer or image processor and what lies beside it.

        Raises:
            CheckpointError: If there is neither, or the checkpoint's folder cannot be read.
            ConfigError: If it is not clear which it is, or it has no such option.
        """
        from qdqpatch.checkpoint.companions import read_companions
        from qdqpatch.tasks import task_beside

        companions = read_companions(ckpt)
        return task_beside(ckpt, self.task, config, self.max_length, self.options, companions)

    def to_evaluate_on(self, name: str) -> DataSource:
        """Return another source with the same columns; of a data set with splits, what it has for that."""
        from qdqpatch.data.named import has_splits

        if has_splits(name):
            return replace(self.source, name=name, split="validation")
        return replace(self.source, name=name, split=None, subset=None)


def data_options(command: Command) -> Command:
    """Add the options; the command gets them as one `data`."""

    @functools.wraps(command)
    def with_data(
        task: str | None,
        data: str,
        text_column: str | None,
        text_pair_column: str | None,
        label_column: str | None,
        split: str | None,
        subset: str | None,
        max_length: int | None,
        stride: int | None,
        longest_answer: int | None,
        no_answer: bool,
        null_threshold: float | None,
        **arguments: Any,
    ) -> None:
        if text_pair_column and not text_column:
            raise click.UsageError("--text-pair-column needs --text-column, for the first text of each pair.")
        from qdqpatch.tasks.base import Columns, DataSource

        columns = Columns(text_column, text_pair_column, label_column)
        if null_threshold is not None and not no_answer:
            raise click.UsageError(
                "--null-threshold is for questions that may have no answer: add --no-answer."
            )
        given = {
            "stride": stride,
            "longest_answer": longest_answer,
            "no_answer": no_answer or None,
            "null_threshold": null_threshold,
        }
        options = {name: value for name, value in given.items() if value is not None}
        command(data=Data(task, DataSource(data, columns, split, subset), max_length, options), **arguments)

    for option in reversed(OPTIONS):
        with_data = option(with_data)
    return with_data
