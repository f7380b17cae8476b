"""What the options of calibration do: read the texts, and calibrate behind a progress bar."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdqpatch.choices import Cpu, Method, WeightMethod
from qdqpatch.cli.bar import CalibrationBar
from qdqpatch.data.stored import is_stored
from qdqpatch.errors import CheckpointError
from qdqpatch.spelling import counted

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from qdqpatch.calibration import Statistics
    from qdqpatch.checkpoint.companions import Companions
    from qdqpatch.data.batches import TextBatches
    from qdqpatch.data.texts import Texts
    from qdqpatch.nn.pooling import SentenceHead

JUDGED = 64
"""On so many texts a model is compared with the float one."""


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
    weight_method: WeightMethod | None
    fuse_inputs: bool
    fuse_qkv: bool
    clip_gelu: float | None
    smooth: bool
    shift: bool
    smooth_inputs: bool
    smooth_residuals: bool
    refine: int
    tune: int
    round_weights: bool
    correct_biases: bool

    def for_files(self, targets: Sequence[str], cpu: Cpu | None) -> Calibration:
        """Return the options with the ranges of weights that suit files best, unless they were asked for.

        Args:
            targets: The engines that files are written for.
            cpu: What will run them; None for this machine.
        """
        if self.weight_method is not None or not targets:
            return self
        from qdqpatch.exporter.asked import weight_method_for

        wanted = {weight_method_for(target, cpu) for target in targets}
        return dataclasses.replace(self, weight_method="pairs" if "pairs" in wanted else "max")

    def prepare(self, ckpt: str, companions: Companions, console: Console) -> Prepared | PreparedImages:
        """Read the tokenizer and the texts, and return what calibrates the model with them.

        Args:
            ckpt: The checkpoint.
            companions: What lies beside its weights: how texts begin, and where they are cut.
            console: Where to say what is done.

        Raises:
            ConfigError: If there is no such prompt.
        """
        if Path(self.source).is_dir() and not is_stored(self.source):
            return self._with_images(ckpt, console)
        from qdqpatch.checkpoint.sentence_head import load_sentence_head
        from qdqpatch.checkpoint.tokenizer import load_tokenizer
        from qdqpatch.data.named import is_dataset
        from qdqpatch.data.texts import read_texts

        prompt = companions.prompt(self.prompt)
        tokenizer = load_tokenizer(ckpt)
        if is_dataset(self.source):
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
        head = load_sentence_head(companions) if self.tune else None
        return Prepared(
            settings, dataclasses.replace(texts, rows=rows), judged, bool(others), tokenizer, console, head
        )

    def _with_images(self, ckpt: str, console: Console) -> PreparedImages:
        """Find the images of the folder, and return what calibrates a model with them."""
        from qdqpatch.checkpoint.processor import PROCESSOR_FILES, has_processor, load_processor
        from qdqpatch.data.images import find_images
        from qdqpatch.data.sampling import reservoir

        if not has_processor(ckpt):
            raise CheckpointError(
                f"{self.source} is a folder. For texts, name a file; for images, {ckpt} needs its image "
                f"processor ({PROCESSOR_FILES[0]}), from the model that it was made of."
            )
        processor = load_processor(ckpt)
        drawn, total = reservoir(find_images(self.source), self.samples, self.seed)
        return PreparedImages(self, [image.path for image in drawn], total, processor, console)

    def record(self, samples: int, max_length: int | None) -> dict[str, Any]:
        """Return what the record of a folder says of its calibration.

        Args:
            samples: How many examples there were.
            max_length: Where texts were cut; None of images.
        """
        from qdqpatch.output.record import data_record

        names = ("smooth", "shift", "smooth_inputs", "smooth_residuals", "refine", "tune", "fuse_inputs")
        more = ("fuse_qkv", "clip_gelu", "round_weights", "correct_biases")
        settings = {
            "method": self.method,
            "percentile": self.percentile if self.method == "percentile" else None,
            "weight_method": self.weight_method or "max",
            "samples": samples,
            "seed": self.seed,
            "max_length": max_length,
            "prompt": self.prompt,
            **{name: getattr(self, name) for name in (*names, *more)},
        }
        return {"calibration": settings, "data": data_record(self.source)}

    def _run(
        self,
        texts: Texts,
        tokenizer: PreTrainedTokenizerBase,
        console: Console,
        head: SentenceHead | None,
        model: PreTrainedModel,
    ) -> Statistics:
        """Say what the texts are, and calibrate the model with them."""
        from qdqpatch.calibration.observing import HELD_BACK
        from qdqpatch.data.batches import TextBatches, warn_if_short
        from qdqpatch.data.lengths import served_length
        from qdqpatch.distributed import is_first, share

        rows = share(texts.rows, HELD_BACK * self.batch_size)
        batches = TextBatches(rows, tokenizer, model, batch_size=self.batch_size, max_length=self.max_length)
        columns = " and ".join(column for column in texts.columns if column is not None)
        console.print(
            f"Calibrating with {len(texts.rows)} of {counted(texts.total, 'text')} in {texts.source} "
            f"({columns}).",
        )
        if not self.length_given and is_first():
            warn_if_short(batches, served_length(tokenizer, model))
        return self._ranges(model, batches, console, head)

    def _ranges(
        self, model: PreTrainedModel, batches: Any, console: Console, head: SentenceHead | None = None
    ) -> Statistics:
        """Calibrate the model behind a progress bar."""
        from qdqpatch.calibration.ptq import ptq

        with CalibrationBar(console) as bar:
            ptq(
                model,
                batches,
                method=self.method,
                percentile=self.percentile,
                weight_method=self.weight_method or "max",
                smooth=self.smooth,
                shift=self.shift,
                smooth_inputs=self.smooth_inputs,
                smooth_residuals=self.smooth_residuals,
                refine=self.refine,
                tune=self.tune,
                head=head,
                fuse_inputs=self.fuse_inputs,
                fuse_qkv=self.fuse_qkv,
                clip_gelu=self.clip_gelu,
                round_weights=self.round_weights,
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
        head: What makes a text's embedding, where ranges are tuned by it.
    """

    settings: Calibration
    texts: Texts
    judged: list[tuple[str, str | None]]
    held_back: bool
    tokenizer: PreTrainedTokenizerBase
    console: Console
    head: SentenceHead | None = None

    def __call__(self, model: PreTrainedModel) -> Statistics:
        """Calibrate the model, and return what the quantizers saw."""
        return self.settings._run(self.texts, self.tokenizer, self.console, self.head, model)

    def batches(self, model: PreTrainedModel) -> TextBatches:
        """Return the texts to judge on."""
        from qdqpatch.data.batches import TextBatches

        return TextBatches(self.judged, self.tokenizer, model, max_length=self.settings.max_length)

    def record(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return what the record of a folder says of its calibration."""
        return self.settings.record(len(self.texts.rows), self.batches(model).max_length)


@dataclass(frozen=True)
class PreparedImages:
    """Images that are found, to calibrate a model with.

    Attributes:
        settings: What the options say.
        paths: Of those to calibrate with.
        total: How many there are in all.
        processor: The model's.
        console: Where to say what is done.
    """

    settings: Calibration
    paths: list[Path]
    total: int
    processor: Any
    console: Console

    def __call__(self, model: PreTrainedModel) -> Statistics:
        """Calibrate the model, and return what the quantizers saw."""
        from qdqpatch.calibration.observing import HELD_BACK
        from qdqpatch.data.images import ImageBatches
        from qdqpatch.distributed import share

        settings, total = self.settings, self.total
        own = share(self.paths, HELD_BACK * settings.batch_size)
        batches = ImageBatches(own, self.processor, settings.batch_size)
        self.console.print(
            f"Calibrating with {len(self.paths)} of {counted(total, 'image')} in {settings.source}."
        )
        return settings._ranges(model, batches, self.console)

    def record(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return what the record of a folder says of its calibration."""
        return self.settings.record(len(self.paths), None)


def _silence_datasets() -> None:
    """Keep log lines and bars of `datasets` off the screen, where it is installed."""
    with contextlib.suppress(ImportError):
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()
