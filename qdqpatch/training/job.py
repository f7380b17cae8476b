"""What is trained, on what and how, and what came of it, as data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from qdqpatch.choices import ActivationRanges, Method, WeightRanges
from qdqpatch.spelling import spelled
from qdqpatch.training.schedule import Schedule

if TYPE_CHECKING:
    from qdqpatch.config.config import QDQConfig
    from qdqpatch.tasks.base import DataSource
    from qdqpatch.training.distillation import Distillation


CALIBRATION = ("method", "shift", "smooth_inputs", "smooth_residuals", "refine")
"""The settings of a job that are for a float checkpoint alone."""


@dataclass(frozen=True)
class Job:
    """What is to be trained, on what, and how.

    Attributes:
        ckpt: A float checkpoint, or a calibrated one.
        data: The training data.
        eval_data: What the metrics are computed on; None holds a tenth of the training data out.
        task: A key of `qdqpatch.tasks.TASKS`; None for what the checkpoint's head is for.
        max_length: Where sequences are cut; None for the task's default.
        options: What else of the task is set, by the names in its `options`.
        eval_samples: At most so many examples are evaluated on, drawn at random; None for all.
        teacher: The float checkpoint to distil from; None for `ckpt` itself, without its quantizers.
        distillation: The parts of the loss with a teacher; None to learn from labels alone.
        schedule: How long and at what rate.
        config: What is quantized of a float checkpoint; None for the default.
        method: How a float checkpoint is calibrated, as `qdqpatch.calibrate` takes it.
        shift: Whether its channels are shifted before, where that can be done.
        smooth_inputs: Whether what its Linears read is smoothed before as well; None for embedders alone,
            whose vectors gain most by it.
        smooth_residuals: The same of what its residual adds read.
        refine: For how many epochs its ranges are refined after that; 0 for none. What training ends with
            depends on the ranges that it begins with.
        activations: How ranges of activations are trained, as `train_ranges` takes it.
        weights: How those of weights are.
    """

    ckpt: str
    data: DataSource
    eval_data: DataSource | None = None
    task: str | None = None
    max_length: int | None = None
    options: Mapping[str, float] = field(default_factory=dict)
    eval_samples: int | None = None
    teacher: str | None = None
    distillation: Distillation | None = None
    schedule: Schedule = field(default_factory=Schedule)
    config: QDQConfig | None = None
    method: Method = "auto"
    shift: bool = True
    smooth_inputs: bool | None = None
    smooth_residuals: bool | None = None
    refine: int = 4
    activations: ActivationRanges = "lsq"
    weights: WeightRanges = "follow"

    def to_dict(self) -> dict[str, Any]:
        """Return the job as JSON-ready data."""
        parts = asdict(dataclasses.replace(self, config=None))
        parts["config"] = None if self.config is None else self.config.to_dict()
        jsonable: dict[str, Any] = json.loads(json.dumps(parts))
        return jsonable


def of_calibration(job: Job) -> list[str]:
    """Return what a job says of how a float checkpoint is calibrated, other than what is usual."""
    return [
        spelled(f"{setting.name}={value!r}", _option(setting.name, value))
        for setting in dataclasses.fields(job)
        if setting.name in CALIBRATION and (value := getattr(job, setting.name)) != setting.default
    ]


def _option(name: str, value: object) -> str:
    return f"--{'no-' if value is False else ''}{name.replace('_', '-')}"


@dataclass(frozen=True)
class Stage:
    """One of the models on the way: float, calibrated, trained.

    Attributes:
        name: Which.
        metrics: Its metrics, by name; the last one is the main one.
        seconds: What it took to make it.
        digits: How many digits after the point its metrics are written with, by name.
    """

    name: str
    metrics: dict[str, float]
    seconds: float = 0.0
    digits: dict[str, int] = field(default_factory=dict)


@dataclass
class TrainingReport:
    """What each stage gained.

    Attributes:
        examples: How many examples the metrics are of.
        held_out: Whether these were taken out of the training data.
        stages: The stages.
        features: How many sequences were trained on.
        loss: The mean loss of training.
    """

    examples: int
    held_out: bool
    stages: list[Stage] = field(default_factory=list)
    features: int = 0
    loss: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        return asdict(self)
