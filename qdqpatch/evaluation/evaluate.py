"""The whole of an evaluation: find, check and load the models, run them on the same data, compare them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qdqpatch.data.arrays import Arrays
from qdqpatch.engines.contenders import TORCH, Contender
from qdqpatch.engines.exactness import Exactness, exactness
from qdqpatch.engines.loading import load_each
from qdqpatch.engines.models import find_contenders
from qdqpatch.engines.sessions import ENGINES
from qdqpatch.engines.threads import torch_threads
from qdqpatch.errors import ConfigError, EngineError
from qdqpatch.evaluation.bootstrap import difference
from qdqpatch.evaluation.models import Model, load
from qdqpatch.evaluation.predicting import predict
from qdqpatch.evaluation.result import Evaluation, EvaluationRow, Figure
from qdqpatch.evaluation.shared_task import settle
from qdqpatch.spelling import counted
from qdqpatch.tasks.base import DataSource, Feature, Task, draw

Step = Callable[[str, int, int], None]
"""Told what is done now, how many steps are done, and of how many."""


def evaluate(
    models: Sequence[str],
    task: str | None,
    source: DataSource,
    samples: int | None = None,
    *,
    seed: int = 0,
    max_length: int | None = None,
    options: Mapping[str, float] | None = None,
    batch_size: int = 32,
    engines: Collection[str] = (),
    threads: int | None = None,
    step: Step = lambda text, done, total: None,
) -> Evaluation:
    """Compute a task's metrics of models, all on the same tokens.

    Args:
        models: Files, folders, and names of checkpoints on the hub; a folder with several kinds of model
            gives several rows. Config and tokenizer are those of the first one that has them.
        task: A key of `qdqpatch.tasks.TASKS`; None for what the head that the config names is for.
        source: The data. If it has no labels at all, the models are compared with the first one: how far
            their outputs are from its, and how many predictions are the same. With labels they are too,
            beside the metrics (`EvaluationRow.closeness`).
        samples: How many of the examples to draw at random; None for all.
        seed: Another one draws other examples, and other ones in the bootstrap.
        max_length: Where sequences are cut; None for the task's default. At most what every model takes.
        options: What else is set, by the names in the task's `options`.
        batch_size: How many sequences run at once; graphs that are made for another number get that one.
        engines: Some of `qdqpatch.contenders.RUNNERS`; empty for all that are installed. An engine that was
            not asked for and cannot load a model is skipped.
        threads: That a run may use; None for each engine's own choice.
        step: Told of the progress.

    Raises:
        CheckpointError: If a model is not there, cannot be loaded, or lacks the task's head.
        EngineError: If an engine is not installed, or fails, or a model gives NaN.
        ConfigError: If the models cannot be compared, or not on that data.
        DataError: If something is wrong in the data.
    """
    contenders = find_contenders(models, engines)
    step("Reading", 0, 1)
    settled = settle(models, task, max_length, options)
    everything, reason = settled.read_any(source)
    examples = draw(everything, samples, seed)
    if reason is None:
        settled.check_labels(examples)
    features = settled.features(examples, seed=seed)

    def load_one(contender: Contender) -> Model:
        step(f"Loading {contender}", 0, 1)
        return load(contender, settled, threads)

    with torch_threads(threads or torch.get_num_threads()):
        loaded, skipped = load_each(contenders, load_one, bool(engines))
        if reason is not None and len(loaded) < 2:
            raise ConfigError(
                f"{reason} Without labels models can only be compared: name another one beside "
                f"{loaded[0].contender}, such as the one before quantization."
            )
        for model in loaded:
            model.check_lengths(settled, features)
        runs = _run_all(loaded, settled, features, batch_size, step)
    reference = runs[0].outputs if len(runs) > 1 else None
    metrics = [
        settled.score(examples, features, run.outputs, reference)
        if reason is None
        else settled.compare(run.outputs, reference)
        for run in runs
    ]
    first = metrics[0][-1]
    close: list[tuple[Figure, ...]] = [
        ()
        if run is runs[0]
        else tuple(
            Figure.of(metric, seed) for metric in settled.closeness(examples, run.outputs, runs[0].outputs)
        )
        for run in runs
    ]
    rows = [
        EvaluationRow(
            model=model.contender.model,
            engine=model.contender.engine,
            path=model.contender.path,
            metrics={metric.name: metric for metric in own},
            difference=None if own is metrics[0] else difference(first, own[-1], seed),
            seconds=run.seconds,
            note=model.note,
            closeness=figures,
            exactness=_exactness(model, settled, features),
        )
        for model, own, run, figures in zip(loaded, metrics, runs, close, strict=True)
    ]
    return Evaluation(
        settled.name,
        source.name,
        len(examples),
        first.name,
        tuple(rows),
        tuple(skipped),
        labelled=reason is None,
    )


@dataclass(frozen=True)
class _Outputs:
    outputs: list[Arrays]
    seconds: float


def _run_all(
    models: Sequence[Model], task: Task[Any], features: Sequence[Feature], batch_size: int, step: Step
) -> list[_Outputs]:
    """Run one model after the other; stop at the first one whose outputs cannot be compared."""
    runs: list[_Outputs] = []
    for model in models:
        before = len(runs) * len(features)

        def show(done: int, total: int, model: Model = model, before: int = before) -> None:
            step(f"Running {model.contender}", before + done, len(models) * total)

        show(0, len(features))
        started = time.perf_counter()
        found = predict(model.run, task, features, model.batch or batch_size, show)
        runs.append(_Outputs(found, time.perf_counter() - started))
        _check_numbers(found, model)
        _check_shapes(found[0], model, runs[0].outputs[0], models[0])
    return runs


def _exactness(model: Model, task: Task[Any], features: Sequence[Feature]) -> Exactness | None:
    """Return whether a file gives a text the same alone and in a batch; None of images, or in torch."""
    contender = model.contender
    of_texts = "input_ids" in features[0]
    if contender.engine == TORCH or not of_texts or (model.batch, model.length) != (None, None):
        return None
    ordered = sorted(features, key=task.length)
    rows = [ordered[place * (len(ordered) - 1) // 2]["input_ids"] for place in range(3)]
    load = functools.partial(ENGINES[contender.engine].load, Path(contender.path))
    try:
        return exactness(load, rows, task.tokenizer.pad_token_id or 0)
    except EngineError:  # it takes something else than single texts
        return None


def _check_numbers(outputs: Sequence[Arrays], model: Model) -> None:
    broken = sum(any(np.isnan(value).any() for value in output.values()) for output in outputs)
    if broken:
        raise EngineError(
            f"{model.contender} gives NaN for {broken} of {counted(len(outputs), 'sequence')}: check "
            "its weights and ranges."
        )


def _check_shapes(outputs: Arrays, model: Model, expected: Arrays, first: Model) -> None:
    """Check one feature's outputs: what labels and heads give, where no config tells of them."""
    for name, value in outputs.items():
        if value.shape != expected[name].shape:
            raise ConfigError(
                f"{model.contender} gives {name} of shape {value.shape} where {first.contender} gives "
                f"{expected[name].shape}: they cannot be compared."
            )
