"""`qdqpatch convert`: quantize a checkpoint, calibrate it if data is given, and save it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedModel

from qdqpatch.calibration import calibrate
from qdqpatch.checkpoint.source import Source, open_checkpoint
from qdqpatch.checkpoint.staging import check_output, staged
from qdqpatch.checkpoint.tokenizer import copy_tokenizer, load_tokenizer
from qdqpatch.cli.common import placement_options, verbosity_options
from qdqpatch.config import QDQConfig
from qdqpatch.conversion import quantize
from qdqpatch.errors import CalibrationError, QuantizedError
from qdqpatch.patch import named_quantizers


@click.command()
@click.argument("ckpt")
@click.argument("out", type=click.Path(path_type=Path))
@placement_options
@click.option(
    "--calib",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Set the ranges from the texts in FILE, one a line. Without it, ranges are computed from each "
    "input, and engines that need fixed ones cannot take the model.",
)
@click.option(
    "--batch-size", default=16, show_default=True, type=click.IntRange(min=1), help="Texts a batch."
)
@click.option(
    "--max-length",
    default=128,
    show_default=True,
    type=click.IntRange(min=3),
    help="Tokens a text is cut to.",
)
@click.option("--force", is_flag=True, help="Replace OUT if it has files in it.")
@verbosity_options
def convert(
    ckpt: str,
    out: Path,
    task: str | None,
    placement: Callable[[], QDQConfig | None],
    calib: Path | None,
    batch_size: int,
    max_length: int,
    force: bool,
    console: Console,
) -> None:
    """Quantize CKPT and save it to the folder OUT.

    OUT loads with `import qdqpatch` and AutoModel...from_pretrained. CKPT may also be a checkpoint of the
    old QDQBERT classes, which keeps its ranges. OUT is complete or is not there.
    """
    started = time.perf_counter()
    with console.status(f"Reading {ckpt}"):
        source = open_checkpoint(ckpt, task)
    config = placement()
    if config is not None and source.quantization is not None:
        raise QuantizedError(
            f"{ckpt} is quantized already. Convert the float checkpoint, or leave out --preset, --config "
            "and --override to keep its placement."
        )
    check_output(out, ckpt, force)
    plan = source.plan(config)
    source.ranges()
    with console.status(f"Loading {ckpt}"):
        model, missing = source.load()
    if missing:
        console.print(f"Warning: {ckpt} lacks these weights, which are random now: {', '.join(missing)}")
    if source.quantization is None:
        quantize(model, config)
    if calib is not None:
        calibrate(model, _batches(source, model, calib, batch_size, max_length, console))
    with staged(out) as folder, console.status(f"Saving {out}"):
        model.save_pretrained(folder)
        copy_tokenizer(ckpt, folder)
    enabled = [quantizer for _, quantizer in named_quantizers(model) if not quantizer._disabled]
    calibrated = [quantizer.amax is not None for quantizer in enabled]
    console.print(
        f"Wrote {out}: {len(plan.sites)} operations quantized, {len(plan.misses)} left float; "
        f"{sum(calibrated)} of {len(calibrated)} quantizers have a range "
        f"({time.perf_counter() - started:.1f} s)."
    )
    if not any(calibrated):
        console.print("To set the ranges, convert again with --calib FILE.")


def _batches(
    source: Source, model: PreTrainedModel, file: Path, batch_size: int, max_length: int, console: Console
) -> Iterator[dict[str, Any]]:
    """Yield the lines of a text file as tokenized batches, behind a progress bar."""
    try:
        texts = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"Cannot read {file} as UTF-8 text: {error}") from error
    if not texts:
        raise CalibrationError(f"{file} has no text to calibrate with.")
    tokenizer = load_tokenizer(source.name)
    if len(tokenizer) > model.config.vocab_size:
        raise CalibrationError(
            f"The tokenizer of {source.name} has {len(tokenizer)} tokens and the model only "
            f"{model.config.vocab_size}: they do not belong together."
        )
    starts = range(0, len(texts), batch_size)
    for start in track(starts, "Calibrating", console=console, disable=console.quiet, transient=True):
        batch = tokenizer(
            texts[start : start + batch_size],
            padding=True,
            truncation=True,
            max_length=min(max_length, model.config.max_position_embeddings),
            return_tensors="pt",
        )
        if type(model).__name__.endswith("MultipleChoice"):
            batch = {name: tensor.unsqueeze(1) for name, tensor in batch.items()}
        yield dict(batch)
