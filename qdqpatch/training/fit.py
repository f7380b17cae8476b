"""The training run itself: a short schedule at a low rate, checkpoints, and going on from one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainerState, TrainingArguments

from qdqpatch.distributed import is_distributed, processes
from qdqpatch.errors import TrainingError
from qdqpatch.nn.pooling import SentenceHead
from qdqpatch.patching.finite import not_finite
from qdqpatch.spelling import spelled
from qdqpatch.tasks.base import Batch, Feature
from qdqpatch.training.distillation import Distillation
from qdqpatch.training.sampling import LengthGroupedSampler
from qdqpatch.training.schedule import Schedule
from qdqpatch.training.trainer import DistillationTrainer

Step = Callable[[int, int, float | None], None]
"""Called after each optimizer step: how many are done, of how many, and the last loss that was logged."""

LABELS = Distillation(logits=0.0, labels=1.0)

CHECKPOINTS = 10
"""How many are written in a run."""


def fit(
    model: PreTrainedModel,
    features: Sequence[Feature],
    collate: Callable[[Sequence[Feature]], Batch],
    folder: Path,
    schedule: Schedule,
    teacher: PreTrainedModel | None = None,
    distillation: Distillation | None = None,
    resume: Path | None = None,
    step: Step | None = None,
    head: SentenceHead | None = None,
) -> float:
    """Train a calibrated model.

    Args:
        model: The model, which is trained in place and left in eval mode.
        features: What it learns from; labels are needed without a teacher.
        collate: Makes a batch of some of them.
        folder: Where checkpoints go.
        schedule: How it is trained.
        teacher: The float model to learn from; None for the labels.
        distillation: The parts of the loss with a teacher; None for the logits alone.
        resume: The checkpoint to go on from.
        step: Called after each step.
        head: What makes embeddings of a headless model's last hidden states; None for their mean.

    Returns:
        The mean loss.

    Raises:
        TrainingError: If it diverges.
    """
    steps = schedule.steps(math.ceil(len(features) / processes()))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=schedule.batch_size,
        gradient_accumulation_steps=schedule.accumulate,
        learning_rate=schedule.lr,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(schedule.warmup * steps),
        weight_decay=schedule.weight_decay,
        seed=schedule.seed,
        bf16=schedule.bf16,
        save_steps=max(1, steps // CHECKPOINTS),
        save_total_limit=2,  # the one before the last is whole even if the last is not
        logging_steps=max(1, steps // 100),
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=model.device.type == "cpu",
        ddp_backend="gloo" if is_distributed() and model.device.type == "cpu" else None,
    )
    trainer = _Trainer(
        model,
        arguments,
        teacher=teacher,
        distillation=distillation or (LABELS if teacher is None else None),
        train_dataset=features,
        data_collator=collate,
        callbacks=[_Progress(step)],
        head=head,
    )
    trainer.remove_callback(PrinterCallback)  # a library does not print
    with dropout(model, schedule.dropout):
        result = trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    model.eval()
    _check_weights(model, trainer.state, schedule.lr)
    return float(result.training_loss)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end; None if there is none."""
    found = [
        path
        for path in folder.glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdecimal() and _has_state(path / "trainer_state.json")
    ]
    return max(found, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def _has_state(file: Path) -> bool:
    """Whether the Trainer wrote its state, the last of a checkpoint's files, to its end."""
    try:
        return isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


@contextmanager
def dropout(model: nn.Module, on: bool) -> Iterator[None]:
    """Leave dropout on or take it away; afterwards it is as before."""
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    before = [layer.p for layer in layers]
    try:
        for layer in layers:
            layer.p = layer.p if on else 0.0
        yield
    finally:
        for layer, p in zip(layers, before, strict=True):
            layer.p = p


def _check_weights(model: nn.Module, state: TrainerState, lr: float) -> None:
    if bad := not_finite(model):
        place = f"step {state.global_step} of {state.max_steps}"
        raise _diverged(f"{bad[0]} holds NaN or infinity after {place}", lr)


def _diverged(how: str, lr: float) -> TrainingError:
    return TrainingError(
        f"Training diverged: {how}. Lower {spelled('the learning rate', '--lr')}, which is {lr:g}. "
        "Nothing was written."
    )


class _Trainer(DistillationTrainer):
    """Takes sequences of like length together, and stops where the loss is no number."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss of a batch, whose gradients are added up."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            if self.state.global_step == 0:
                raise TrainingError(
                    f"The loss is {loss.item():g} before anything was learned: check the labels of the data "
                    "and the weights of the model. Nothing was written."
                )
            step = f"at step {self.state.global_step + 1} of {self.state.max_steps}"
            raise _diverged(f"the loss is {loss.item():g} {step}", self.args.learning_rate)
        return loss

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of an epoch."""
        features: Any = self.train_dataset
        lengths = [_length(feature.get("input_ids", ())) for feature in features]
        size = self.args.train_batch_size
        loader = DataLoader(
            features,
            batch_size=size,
            sampler=LengthGroupedSampler(lengths, size, self.args.seed),
            collate_fn=self.data_collator,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared


def _length(ids: Sequence[Any]) -> int:
    """Return how many tokens a feature has; of several choices, the longest one; of an image, 0."""
    return max(map(len, ids)) if ids and isinstance(ids[0], list) else len(ids)


class _Progress(TrainerCallback):
    """Passes on what the Trainer would print, and stops it where it would save what is no model."""

    def __init__(self, step: Step | None) -> None:
        self._step = step
        self._loss: float | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Remember the loss."""
        self._loss = (logs or {}).get("loss", self._loss)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Say how far it is; before a checkpoint is written, see that the weights are numbers."""
        if control.should_save:
            _check_weights(model, state, args.learning_rate)
        if self._step is not None:
            self._step(state.global_step, state.max_steps, self._loss)
