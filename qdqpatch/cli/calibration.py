"""The options that set ranges from data, and what they do."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from qdqpatch.choices import DEFAULT_PERCENTILE, METHODS, Method
from qdqpatch.cli.bar import CalibrationBar
from qdqpatch.cli.common import Command
from qdqpatch.cli.numbers import PositiveFloat
from qdqpatch.cli.options import COLUMN_HELP, EPOCHS, LENGTH, SEED
from qdqpatch.cli.sections import SectionOption

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from qdqpatch.calibration import Statistics
    from qdqpatch.checkpoint.companions import Companions
    from qdqpatch.data.batches import TextBatches
    from qdqpatch.data.texts import Texts

SECTION = "Calibration"
_option = functools.partial(click.option, cls=SectionOption, section=SECTION)

JUDGED = 64
"""On so many texts a model is compared with the float one."""

OPTIONS = (
    _option(
        "--calib",
        "--data",
        "source",
        metavar="FILE|NAME",
        help="Set the ranges from the texts in FILE: lines of .txt, rows of .csv or .tsv (the first line "
        "names the columns), objects of .jsonl, questions of SQuAD's .json; also gzipped (.gz). A NAME that "
        "is no file is a data set on the Hugging Face hub. Without --calib, ranges are computed from each "
        "input, and engines that need fixed ones cannot take the model.",
    ),
    _option(
        "--text-column",
        metavar="COLUMN",
        help=COLUMN_HELP,
    ),
    _option(
        "--text-pair-column",
        metavar="COLUMN",
        help="The column with the second texts, for models that read two together.",
    ),
    _option("--split", help="The split of a hub data set.  [default: train]"),
    _option("--subset", help="The subset (config) of a hub data set, such as sst2 of nyu-mll/glue."),
    _option(
        "--samples",
        default=256,
        show_default=True,
        type=click.IntRange(min=1),
        help="How many texts to draw at random; all if there are fewer.",
    ),
    _option("--seed", type=SEED, default=0, show_default=True, help="Another seed draws other texts."),
    _option(
        "--batch-size",
        default=16,
        show_default=True,
        type=click.IntRange(min=1),
        help="Texts that run through the model at once.",
    ),
    _option(
        "--max-length",
        default=128,
        show_default=True,
        type=LENGTH,
        help="Where texts are cut, in tokens: the longest sequence that the model will serve. A folder of "
        "sentence-transformers says it itself.",
    ),
    _option(
        "--prompt",
        metavar="NAME",
        help="The prompt that texts begin with, one of those in config_sentence_transformers.json.  "
        "[default: the one that it names as the default, if any]",
    ),
    _option(
        "--method",
        default="auto",
        show_default=True,
        type=click.Choice(METHODS),
        help="How ranges follow from the values seen. max: up to the largest; percentile: leave the few "
        "largest out; mse: the least squared error; entropy: the least loss of information; auto: for each "
        "quantizer what serves its operation best, which takes about twice as long.",
    ),
    _option(
        "--percentile",
        default=DEFAULT_PERCENTILE,
        show_default=True,
        type=click.FloatRange(0, 100, min_open=True),
        help="How many percent of the values a range takes in; sets --method percentile.",
    ),
    _option(
        "--fuse-qkv",
        is_flag=True,
        help="Give query, key and value of an attention one range, for engines with one GEMM for all three.",
    ),
    _option(
        "--clip-gelu",
        type=PositiveFloat(),
        metavar="VALUE",
        help="Let the ranges after GELU end at VALUE, such as 10.",
    ),
    _option(
        "--smooth",
        is_flag=True,
        help="First rescale values, queries and keys, so that no channel is an outlier (SmoothQuant). What "
        "the float model computes stays the same.",
    ),
    _option(
        "--shift",
        is_flag=True,
        help="First move the channels of values and LayerNorms around zero (Outlier Suppression+), by way of "
        "the biases. What the float model computes stays the same but for rounding.",
    ),
    _option(
        "--smooth-inputs",
        is_flag=True,
        help="First multiply what the Linears read by powers of two, so that no channel is an outlier "
        "(SmoothQuant), as much as texts held back say. What the float model computes stays the same; an "
        "engine multiplies once more for each tensor.",
    ),
    _option(
        "--refine",
        default=0,
        type=EPOCHS,
        metavar="EPOCHS",
        help="Then let all ranges learn together to keep the layers' outputs. Takes about five times as long "
        "as running the texts through the model, for each of the EPOCHS; 2 to 4 are enough, 0 is none.",
    ),
    _option(
        "--correct-biases",
        is_flag=True,
        help="Last take the mean error of each Linear out of its bias. Changes the float model too.",
    ),
)


@dataclass(frozen=True)
class Calibration:
    """What the options say: where texts come from, and how ranges follow from them."""

    source: str
    text_column: str | None
    text_pair_column: str | None
    split: str | None
    subset: str | None
    samples: int
    seed: int
    batch_size: int
    max_length: int
    length_given: bool
    prompt: str | None
    method: Method
    percentile: float
    fuse_qkv: bool
    clip_gelu: float | None
    smooth: bool
    shift: bool
    smooth_inputs: bool
    refine: int
    correct_biases: bool

    def prepare(self, ckpt: str, companions: Companions, console: Console) -> Prepared:
        """Read the tokenizer and the texts, and return what calibrates the model with them.

        Args:
            ckpt: The checkpoint.
            companions: What lies beside its weights: how texts begin, and where they are cut.
            console: Where to say what is done.

        Raises:
            ConfigError: If there is no such prompt.
        """
        from qdqpatch.checkpoint.tokenizer import load_tokenizer
        from qdqpatch.data.texts import is_hub_name, read_texts

        prompt = companions.prompt(self.prompt)
        tokenizer = load_tokenizer(ckpt)
        if is_hub_name(self.source):
            _silence_datasets()
        read = functools.partial(
            read_texts,
            self.source,
            self.text_column,
            self.text_pair_column,
            split=self.split,
            subset=self.subset,
        )
        with console.status(f"Reading {self.source}"):
            texts = read(samples=self.samples, seed=self.seed)
            used = {*texts.rows}
            others = []
            if texts.total > len(texts.rows):
                others = [row for row in read(samples=JUDGED, seed=self.seed ^ 1).rows if row not in used]
        rows, judged = (
            [(companions.text(first, prompt), second) for first, second in some]
            for some in (texts.rows, others or texts.rows[:JUDGED])
        )
        settings = self
        if companions.max_length is not None and not self.length_given:
            settings = dataclasses.replace(self, max_length=companions.max_length)
            tokenizer.model_max_length = min(tokenizer.model_max_length, companions.max_length)
        return Prepared(
            settings, dataclasses.replace(texts, rows=rows), judged, bool(others), tokenizer, console
        )

    def record(self) -> dict[str, Any]:
        """Return what the record of a folder says of its calibration."""
        from qdqpatch.output.record import data_record

        names = ("method", "samples", "seed", "max_length", "prompt", "smooth", "shift", "refine")
        more = ("fuse_qkv", "clip_gelu", "correct_biases")
        settings = {name: getattr(self, name) for name in (*names, *more)}
        return {"calibration": settings, "data": data_record(self.source)}

    def _run(
        self, texts: Texts, tokenizer: PreTrainedTokenizerBase, console: Console, model: PreTrainedModel
    ) -> Statistics:
        """Say what the texts are, and calibrate the model behind a progress bar."""
        from qdqpatch.calibration.observing import HELD_BACK
        from qdqpatch.calibration.ptq import ptq
        from qdqpatch.data.batches import TextBatches, warn_if_short
        from qdqpatch.data.lengths import served_length
        from qdqpatch.distributed import is_first, share

        rows = share(texts.rows, HELD_BACK * self.batch_size)
        batches = TextBatches(rows, tokenizer, model, batch_size=self.batch_size, max_length=self.max_length)
        columns = " and ".join(column for column in texts.columns if column is not None)
        console.print(
            f"Calibrating with {len(texts.rows)} of {texts.total} texts in {texts.source} ({columns}).",
        )
        if not self.length_given and is_first():
            warn_if_short(batches, served_length(tokenizer, model))
        with CalibrationBar(console) as bar:
            ptq(
                model,
                batches,
                method=self.method,
                percentile=self.percentile,
                smooth=self.smooth,
                shift=self.shift,
                smooth_inputs=self.smooth_inputs,
                refine=self.refine,
                fuse_qkv=self.fuse_qkv,
                clip_gelu=self.clip_gelu,
                correct_biases=self.correct_biases,
                listener=bar,
            )
        return bar.statistics


@dataclass(frozen=True)
class Prepared:
    """Texts that are read, to calibrate a model with and to judge it on.

    Attributes:
        settings: What the options say.
        texts: What to calibrate with.
        judged: What to judge on, at most `JUDGED` texts.
        held_back: Whether these are others than those to calibrate with.
        tokenizer: The model's.
        console: Where to say what is done.
    """

    settings: Calibration
    texts: Texts
    judged: list[tuple[str, str | None]]
    held_back: bool
    tokenizer: PreTrainedTokenizerBase
    console: Console

    def __call__(self, model: PreTrainedModel) -> Statistics:
        """Calibrate the model, and return what the quantizers saw."""
        return self.settings._run(self.texts, self.tokenizer, self.console, model)

    def batches(self, model: PreTrainedModel) -> TextBatches:
        """Return the texts to judge on."""
        from qdqpatch.data.batches import TextBatches

        return TextBatches(self.judged, self.tokenizer, model, max_length=self.settings.max_length)


def calibration_options(command: Command) -> Command:
    """Add the options that set ranges from data; the command gets them as one `calibration`, or None."""

    @functools.wraps(command)
    def with_calibration(**arguments: Any) -> None:
        context = click.get_current_context()
        options = [
            parameter
            for parameter in context.command.params
            if getattr(parameter, "section", None) == SECTION
        ]
        values = {str(option.name): arguments.pop(str(option.name)) for option in options}
        given = {
            str(option.name): option.opts[0]
            for option in options
            if context.get_parameter_source(str(option.name)) is not ParameterSource.DEFAULT
        }
        if "percentile" in given and "method" not in given:
            values["method"] = "percentile"
        _check(values, given)
        calibration = None
        if values["source"] is not None:
            calibration = Calibration(**values, length_given="max_length" in given)
        command(calibration=calibration, **arguments)

    for option in reversed(OPTIONS):
        with_calibration = option(with_calibration)
    return with_calibration


def _check(values: Mapping[str, Any], given: Mapping[str, str]) -> None:
    """Refuse options that do not fit each other; `given` are those on the command line, by name."""
    if values["source"] is None and given:
        raise click.UsageError(f"{', '.join(given.values())}: this is for calibration, and needs --calib.")
    if "percentile" in given and values["method"] != "percentile":
        raise click.UsageError(f"--percentile is for --method percentile, not {values['method']}.")
    if math.isnan(values["percentile"]):
        raise click.UsageError("--percentile must be a number above 0 and up to 100.")
    if "text_pair_column" in given and "text_column" not in given:
        raise click.UsageError("--text-pair-column needs --text-column, for the first text of each pair.")
    if given.keys() & {"split", "subset"}:
        from qdqpatch.data.texts import is_hub_name

        for name in () if is_hub_name(values["source"]) else given.keys() & {"split", "subset"}:
            raise click.UsageError(f"{given[name]} is for data sets on the hub, not for a file.")


def _silence_datasets() -> None:
    """Keep log lines and bars of `datasets` off the screen, where it is installed."""
    with contextlib.suppress(ImportError):
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()
