"""What the options of calibration do: read the texts, and calibrate behind a progress bar."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdqpatch.choices import Method
from qdqpatch.cli.common import progress_bar
from qdqpatch.errors import CheckpointError
from qdqpatch.listening import CalibrationListener

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from qdqpatch.calibration import Statistics
    from qdqpatch.checkpoint.companions import Companions
    from qdqpatch.data.texts import Texts
    from qdqpatch.nn.pooling import SentenceHead


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
    fuse_inputs: bool
    fuse_qkv: bool
    clip_gelu: float | None
    smooth: bool
    shift: bool
    smooth_inputs: bool
    refine: int
    tune: int
    correct_biases: bool

    def prepare(
        self, ckpt: str, companions: Companions, console: Console
    ) -> Callable[[PreTrainedModel], Statistics]:
        """Read the tokenizer and the texts, and return what calibrates the model with them.

        That returns what the quantizers saw.

        Args:
            ckpt: The checkpoint.
            companions: What lies beside its weights: how texts begin, and where they are cut.
            console: Where to say what is done.

        Raises:
            ConfigError: If there is no such prompt.
        """
        if Path(self.source).is_dir():
            return self._with_images(ckpt, console)
        from qdqpatch.checkpoint.sentence_head import load_sentence_head
        from qdqpatch.checkpoint.tokenizer import load_tokenizer
        from qdqpatch.data.texts import is_hub_name, read_texts

        prompt = companions.prompt(self.prompt)
        tokenizer = load_tokenizer(ckpt)
        if is_hub_name(self.source):
            _silence_datasets()
        with console.status(f"Reading {self.source}"):
            texts = read_texts(
                self.source,
                self.text_column,
                self.text_pair_column,
                samples=self.samples,
                seed=self.seed,
                split=self.split,
                subset=self.subset,
            )
        rows = [(companions.text(first, prompt), second) for first, second in texts.rows]
        settings = self
        if companions.max_length is not None and not self.length_given:
            settings = dataclasses.replace(self, max_length=companions.max_length)
            tokenizer.model_max_length = min(tokenizer.model_max_length, companions.max_length)
        head = load_sentence_head(companions) if self.tune else None
        return functools.partial(
            settings._run, dataclasses.replace(texts, rows=rows), tokenizer, console, head
        )

    def _with_images(self, ckpt: str, console: Console) -> Callable[[PreTrainedModel], Statistics]:
        """Find the images of the folder, and return what calibrates a model with them."""
        from qdqpatch.calibration.observing import HELD_BACK
        from qdqpatch.checkpoint.processor import PROCESSOR_FILES, has_processor, load_processor
        from qdqpatch.data.images import ImageBatches, find_images
        from qdqpatch.data.sampling import reservoir
        from qdqpatch.distributed import share

        if not has_processor(ckpt):
            raise CheckpointError(
                f"{self.source} is a folder. For texts, name a file; for images, {ckpt} needs its image "
                f"processor ({PROCESSOR_FILES[0]}), from the model that it was made of."
            )
        processor = load_processor(ckpt)
        drawn, total = reservoir(find_images(self.source), self.samples, self.seed)
        own = share([image.path for image in drawn], HELD_BACK * self.batch_size)
        batches = ImageBatches(own, processor, self.batch_size)

        def run(model: PreTrainedModel) -> Statistics:
            console.print(f"Calibrating with {len(drawn)} of {total} images in {self.source}.")
            return self._ranges(model, batches, console)

        return run

    def record(self) -> dict[str, Any]:
        """Return what the record of a folder says of its calibration."""
        names = ("method", "samples", "seed", "max_length", "prompt", "smooth", "shift", "refine", "tune")
        more = ("fuse_inputs", "fuse_qkv", "clip_gelu", "correct_biases")
        settings = {name: getattr(self, name) for name in (*names, *more)}
        data: dict[str, Any] = {"name": Path(self.source).name}
        if Path(self.source).is_file():
            data["sha256"] = hashlib.sha256(Path(self.source).read_bytes()).hexdigest()
        return {"calibration": settings, "data": data}

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
            f"Calibrating with {len(texts.rows)} of {texts.total} texts in {texts.source} ({columns}).",
        )
        if not self.length_given and is_first():
            warn_if_short(batches, served_length(tokenizer, model))
        return self._ranges(model, batches, console, head)

    def _ranges(
        self, model: PreTrainedModel, batches: Any, console: Console, head: SentenceHead | None = None
    ) -> Statistics:
        """Calibrate the model behind a progress bar."""
        from qdqpatch.calibration.ptq import ptq

        with _Bar(console) as bar:
            ptq(
                model,
                batches,
                method=self.method,
                percentile=self.percentile,
                smooth=self.smooth,
                shift=self.shift,
                smooth_inputs=self.smooth_inputs,
                refine=self.refine,
                tune=self.tune,
                head=head,
                fuse_inputs=self.fuse_inputs,
                fuse_qkv=self.fuse_qkv,
                clip_gelu=self.clip_gelu,
                correct_biases=self.correct_biases,
                listener=bar,
            )
        return bar.statistics


class _Bar(CalibrationListener):
    """Shows how calibration goes on: one bar, which begins anew with each step.

    Attributes:
        statistics: What the quantizers saw.
    """

    statistics: Statistics

    def __init__(self, console: Console) -> None:
        self._bar = progress_bar(console)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Begin a step."""
        self._bar.reset(self._task, total=None, description=text)

    def step(self, done: int, total: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=done, total=total)

    def collected(self, statistics: Statistics) -> None:
        """Keep what the quantizers saw."""
        self.statistics = statistics


def _silence_datasets() -> None:
    """Keep log lines and bars of `datasets` off the screen, where it is installed."""
    with contextlib.suppress(ImportError):
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()
