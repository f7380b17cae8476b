"""`optimize`: the best int8 form of a model for one engine and a budget, judged in that engine."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from qdqpatch.calibration.texts import batches_of
from qdqpatch.checkpoint.companions import companions_of
from qdqpatch.checkpoint.sentence_head import load_sentence_head
from qdqpatch.choices import TARGETS, Cpu
from qdqpatch.config.config import QDQConfig
from qdqpatch.distributed import from_first
from qdqpatch.engines.shapes import Shape
from qdqpatch.errors import BudgetError, ConfigError, QuantizedError, UnsupportedModelError
from qdqpatch.evaluation.predicting import predict, torch_run
from qdqpatch.evaluation.rows import rows_of, rows_task
from qdqpatch.listening import CalibrationListener
from qdqpatch.nn.input_scale import ScalesInput
from qdqpatch.nn.pooling import SentenceHead
from qdqpatch.optimizing.budget import Budget
from qdqpatch.optimizing.dividing import Divided, divide
from qdqpatch.optimizing.engine import SHAPE, Place
from qdqpatch.optimizing.judging import HeldBack
from qdqpatch.optimizing.ladder import Climb, Material, climb
from qdqpatch.optimizing.placements import placement_for
from qdqpatch.optimizing.result import Optimization
from qdqpatch.patching.apply import is_quantized, named_quantizers
from qdqpatch.patching.input_scales import scaled_modules
from qdqpatch.patching.quantize import quantize
from qdqpatch.patching.wrapped import unwrapped
from qdqpatch.tasks.base import Task


def optimize(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]] | Sequence[Any],
    *,
    target: str = "onnxruntime",
    max_drop: float | None = None,
    seconds: float | None = None,
    config: QDQConfig | None = None,
    keep_best: bool = False,
    held_back: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    threads: int | None = None,
    cpu: Cpu | None = None,
    int8_embeddings: bool = False,
    shape: tuple[int, int] | None = None,
    tokenizer: Any = None,
    listener: CalibrationListener | None = None,
) -> Optimization:
    """Make a float model the best int8 one for an engine, in place.

    Some of the texts are held back. What is quantized is chosen by the engine and the head; then a ladder is
    climbed (`qdqpatch/optimizing/rungs.py`), each rung judged on the texts held back in the engine itself,
    until one meets the budget.

    Args:
        model: A float model; or a `SentenceTransformer` or `CrossEncoder` with one inside.
        batches: Keyword arguments for the model, as a tokenizer returns them; or a list of texts, or of pairs
            of texts.
        target: `onnxruntime`, `openvino` or `tensorrt`; a file for TensorRT is judged in ONNX Runtime.
        max_drop: How much worse the outputs may be, in percent of the main figure: the cosine of embeddings,
            the share of predictions that stay, the correlation of scores. None for gates by the head
            (`qdqpatch.optimizing.budget.GATES`).
        seconds: The time for everything; a rung that will not fit is not begun. None for as long as it takes.
        config: What to quantize; None for what suits target and head.
        keep_best: Whether the best model is kept where nothing meets the budget.
        held_back: How many rows to judge on; None for a third, and at most 256.
        seed: Another one holds other rows back.
        batch_size: How many sequences run at once.
        threads: That the engine may use; None for its own choice.
        cpu: What will run the model, as `qdqpatch.export` takes it.
        int8_embeddings: Whether files store the embeddings' tables in int8 too.
        shape: Batch and length to time; None for 1 and 128.
        tokenizer: The model's, for texts; that of a `SentenceTransformer` is known.
        listener: Is told how it goes on.

    Returns:
        What each rung gave and cost, and the same model.

    Raises:
        BudgetError: If nothing meets the budget, and `keep_best` is not set. The model is a float one still.
        QuantizedError: If the model is quantized.
        UnsupportedModelError: If it cannot be quantized.
        ConfigError: If an argument is not one of those that there are.
        CalibrationError: If there are too few rows.
        EngineError: If the engine is not installed.
    """
    inner = unwrapped(model)
    check_float(inner)
    place = _place(target, threads, cpu, int8_embeddings)
    rows = rows_of(batches_of(batches, tokenizer, model, inner), inner)
    was_training = inner.training
    inner.eval()
    try:
        companions = companions_of(inner)
        task = rows_task(inner, rows[0], companions)
        result = search_best(
            inner,
            task,
            divide(rows, held_back, None, seed),
            labelled=False,
            place=place,
            budget_percent=max_drop,
            seconds=seconds,
            config=config,
            batch_size=batch_size,
            shape=SHAPE if shape is None else Shape(*shape),
            head=None if companions is None else load_sentence_head(companions),
            listener=listener,
        )
        if not result.met and not keep_best:
            raise BudgetError(f"{result.conclusion()} To have it all the same: keep_best=True.")
        best = result.model
        assert isinstance(best, PreTrainedModel)  # it is a copy of this one
        _take(inner, best)
    finally:
        inner.train(was_training)
    return _of(result, model)


def search_best(
    model: PreTrainedModel,
    task: Task[Any],
    texts: Divided,
    *,
    labelled: bool,
    place: Place,
    budget_percent: float | None,
    seconds: float | None,
    config: QDQConfig | None,
    batch_size: int,
    shape: Shape = SHAPE,
    head: SentenceHead | None = None,
    listener: CalibrationListener | None = None,
) -> Optimization:
    """Climb the ladder with a task's examples; the float model stays as it is.

    Arguments are those of `optimize`, but for the task, its examples by what they are for, whether they have
    labels, and what makes embeddings of the last hidden states, as `ptq` takes it.

    Returns:
        What was found; its model is a copy.

    Raises:
        UnsupportedModelError: If the model cannot be quantized.
        ConfigError: If nothing can be told by what the float model gives: it is NaN, its metric is 0, or all
            of its scores are the same.
        DataError: If labels cannot tell models apart.
        EngineError: If the engine fails.
    """
    started = time.monotonic()
    listener = CalibrationListener() if listener is None else listener
    model.eval()
    listener.say("Running the float model")
    features, own = task.features(texts.held), task.features(texts.calibration)
    begun = time.monotonic()
    expected = predict(torch_run(model), task, features, batch_size)
    # That of the first process, for all have to decide alike what fits into the time.
    per_sequence, spent = from_first(
        lambda: ((time.monotonic() - begun) / len(features), time.monotonic() - started), model.device
    )
    first = task.logits[0]
    outcomes = expected[0][first].shape[-1] if first in expected[0] else 2
    meaning = task.meaning(first, outcomes)
    budget = Budget(meaning, budget_percent)
    placement = placement_for(place.target, meaning)
    chosen = placement.config_for(model) if config is None else config
    judge = HeldBack(task, texts.held, features, expected, labelled, budget, batch_size)
    if math.isinf(judge.judge(expected).shortfall):
        raise ConfigError("The float model gives NaN for the texts held back: check its weights.")
    float_pass = per_sequence * len(own)
    given: dict[str, Any] = {"fuse_inputs": True} if placement.fuse_inputs else {}  # whatever is quantized
    if place.weight_method != "max":
        given["weight_method"] = place.weight_method
    material = Material(model, task, own, texts.choosing, judge, chosen, batch_size, float_pass, head, given)
    left = None if seconds is None else seconds - spent
    found = climb(material, place, left, shape, listener)
    name = str(placement) if config is None else "given"
    return _result(found, place, name, budget, len(texts.held), len(texts.calibration))


def check_float(model: Any) -> None:
    """Find out whether a model is a float one of transformers.

    Raises:
        UnsupportedModelError: If it is none of transformers.
        QuantizedError: If it is quantized.
    """
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(f"A {type(model).__name__} is no model of transformers.")
    if is_quantized(model):
        raise QuantizedError("The model is quantized already: optimize begins with the float one.")


def _place(target: str, threads: int | None, cpu: Cpu | None, int8_embeddings: bool) -> Place:
    if target not in TARGETS:
        raise ConfigError(f"There is no target {target!r}; there are {', '.join(TARGETS)}.")
    return Place.of(target, threads, cpu=cpu, int8_embeddings=int8_embeddings)


def _take(model: PreTrainedModel, best: PreTrainedModel) -> None:
    """Make a float model what its quantized copy became; its Parameters stay the same objects."""
    quantize(model, best.config.quantization_config)
    for parameter, other in zip(_float_parameters(model), _float_parameters(best), strict=True):
        parameter.data.copy_(other.data)
    ours = dict(model.named_modules())
    for path, scaled in scaled_modules(best):
        module = ours.get(path)
        if isinstance(module, ScalesInput):
            module.load_input_scale(scaled.input_scale)
    own = dict(named_quantizers(model))
    for path, quantizer in named_quantizers(best):
        if path in own and quantizer.interval is not None:
            own[path].load_range(quantizer.interval)


def _float_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    return [value for name, value in model.named_parameters() if not name.endswith("_amax")]


def _result(
    found: Climb, place: Place, placement: str, budget: Budget, held: int, calibrated: int
) -> Optimization:
    assert found.best is not None  # the first rung is always climbed
    judged = next(rung.judged for rung in found.rungs if rung.name == found.chosen)
    figures = {} if judged is None else judged.figures
    resolution = budget.resolution(held, figures)
    return Optimization(
        model=found.best,
        target=place.target,
        engine=f"{place.engine.name} {place.engine.version}",
        placement=placement,
        asked=budget.asked(figures),
        rungs=tuple(found.rungs),
        chosen=found.chosen,
        met=found.met,
        settings=found.settings,
        held_back=held,
        calibrated=calibrated,
        warnings=() if resolution is None else (resolution,),
    )


def _of(result: Optimization, model: nn.Module) -> Optimization:
    """Return the result with the model that the user holds."""
    return dataclasses.replace(result, model=model)
