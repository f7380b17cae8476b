"""The options that set ranges from data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from qdqpatch.choices import DEFAULT_PERCENTILE, METHODS, WEIGHT_METHODS
from qdqpatch.cli.calibrating import Calibration
from qdqpatch.cli.common import Command
from qdqpatch.cli.numbers import LARGEST, Number
from qdqpatch.cli.options import COLUMN_HELP, EPOCHS, LENGTH, SEED, SPLIT_HELP, batch_option
from qdqpatch.cli.sections import SectionOption
from qdqpatch.data.stored import is_stored

_data = functools.partial(click.option, cls=SectionOption, section="Data")
_option = functools.partial(click.option, cls=SectionOption, section="Calibration")

OPTIONS = (
    _data(
        "--calib",
        "--data",
        "source",
        metavar="FILE|FOLDER|NAME",
        help="Set the ranges from the texts in FILE: lines of .txt, rows of .csv or .tsv (the first line "
        "names the columns) or .parquet, objects of .jsonl, questions of SQuAD's .json, also gzipped (.gz); "
        "or from the images in FOLDER, or the data set (save_to_disk). A NAME that is neither is a data set "
        "on the Hugging Face hub. Without --calib, ranges are computed from each input, and engines that "
        "need fixed ones cannot take the model.",
    ),
    _data(
        "--text-column",
        metavar="COLUMN",
        help=COLUMN_HELP,
    ),
    _data(
        "--text-pair-column",
        metavar="COLUMN",
        help="The column with the second texts, for models that read two together.",
    ),
    _data("--split", help=SPLIT_HELP),
    _data("--subset", help="The subset (config) of a hub data set, such as sst2 of nyu-mll/glue."),
    _data(
        "--samples",
        default=256,
        show_default=True,
        type=click.IntRange(min=1),
        help="How many texts to draw at random; all if there are fewer.",
    ),
    _data("--seed", type=SEED, default=0, show_default=True, help="Another seed draws other texts."),
    batch_option(),
    _data(
        "--max-length",
        default=128,
        show_default=True,
        type=LENGTH,
        help="Where texts are cut, in tokens: the longest sequence that the model will serve. A folder of "
        "sentence-transformers says it itself.",
    ),
    _data(
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
        type=Number(1, 100, min_open=True),
        help="How many percent of the values a range takes in; sets --method percentile.",
    ),
    _option(
        "--weight-method",
        type=click.Choice(WEIGHT_METHODS),
        help="How ranges of weights follow. max: up to the largest; mse: the least squared error; pairs: as "
        "much wider than max as the faster kernels of processors without VNNI need to be exact.  [default: "
        "pairs if a file for such a processor is exported, else max]",
    ),
    _option(
        "--fuse-inputs",
        is_flag=True,
        help="Give quantizers that read one tensor, as those of query, key, value and residual add do, one "
        "range: TensorRT's kernels then write and read its integers once.",
    ),
    _option(
        "--fuse-qkv",
        is_flag=True,
        help="Give query, key and value of an attention one range, for engines with one GEMM for all three.",
    ),
    _option(
        "--clip-gelu",
        type=Number(0, LARGEST, min_open=True),
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
        help="First multiply what the Linears read, so that no channel is an outlier (SmoothQuant), as much "
        "as texts held back say. What the float model computes stays the same but for rounding; an engine "
        "multiplies once more for each tensor.",
    ),
    _option(
        "--smooth-residuals",
        is_flag=True,
        help="First divide the loud channels of residual adds' operands in front of their quantizers, and "
        "multiply them after (SmoothQuant). What the float model computes stays the same; an engine "
        "multiplies twice for each operand.",
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
        "--tune",
        default=0,
        type=EPOCHS,
        metavar="EPOCHS",
        help="Then let ranges, biases and LayerNorms learn together to keep what the model returns: "
        "embeddings, logits. Takes several hundred texts; 3 epochs are enough, 0 is none. Changes the float "
        "model too.",
    ),
    _option(
        "--round-weights",
        is_flag=True,
        help="Then round weights so that their errors cancel in what the Linears compute (GPTQ). Changes the "
        "float model too.",
    ),
    _option(
        "--correct-biases",
        is_flag=True,
        help="Last take the mean error of each Linear out of its bias. Changes the float model too.",
    ),
)


def calibration_options(command: Command) -> Command:
    """Add the options that set ranges from data; the command gets them as one `calibration`, or None."""

    @functools.wraps(command)
    def with_calibration(**arguments: Any) -> None:
        context = click.get_current_context()
        names = {field.name for field in dataclasses.fields(Calibration)}
        options = [parameter for parameter in context.command.params if parameter.name in names]
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
    if "text_pair_column" in given and "text_column" not in given:
        raise click.UsageError("--text-pair-column needs --text-column, for the first text of each pair.")
    source = values["source"]
    if source is not None and Path(source).is_dir() and not is_stored(source):
        of_texts = ("text_column", "text_pair_column", "split", "subset", "max_length", "prompt")
        if wrong := [given[name] for name in of_texts if name in given]:
            raise click.UsageError(
                f"{', '.join(wrong)}: this is for texts, and --calib names a folder of images."
            )
    if given.keys() & {"split", "subset"}:
        from qdqpatch.data.named import has_splits, is_hub_name

        if "split" in given and not has_splits(source):
            raise click.UsageError("--split is for data sets on the hub, or of several splits in a folder.")
        if "subset" in given and not is_hub_name(source):
            raise click.UsageError("--subset is for data sets on the hub.")
