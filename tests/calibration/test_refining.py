"""Refining ranges: all of them learn together to reproduce the outputs of the float model's layers."""

from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from qdqpatch import QDQConfig, calibrate, quantize
from qdqpatch.calibration import refining
from qdqpatch.calibration.observing import observing
from qdqpatch.calibration.refining import refine_ranges
from qdqpatch.errors import CalibrationError, ConfigError, NotQuantizedError
from qdqpatch.nn.learned import LSQQuantizer
from qdqpatch.training import train_ranges

WIDE = "encoder.layer.0.attention.self.query._input_quantizer"
NARROW = "encoder.layer.1.output.dense._input_quantizer"


def batches(count: int = 9, name: str = "BertModel") -> list[models.Tensors]:
    return [models.inputs(name, seed) for seed in range(31, 31 + count)]


def spoilt(name: str = "BertModel", prefix: str = "") -> PreTrainedModel:
    """A calibrated model with one range that is far too wide, and one that is far too narrow."""
    model = calibrate(models.uncalibrated(name), batches(2, name), method="max")
    for path, factor in ((WIDE, 40.0), (NARROW, 0.1)):
        quantizer = model.get_submodule(prefix + path)
        quantizer.amax = quantizer.amax * factor
    return model


def by_hand(model: PreTrainedModel, data: list[models.Tensors], padding: bool = True) -> float:
    """The relative squared error of both layers' outputs, summed over the batches."""
    total = 0.0
    for batch in data:
        mask = batch["attention_mask"].bool() if padding else ...
        with torch.no_grad():
            with observing(model, {}):
                expected = model(**batch, output_hidden_states=True).hidden_states[1:]
            found = model(**batch, output_hidden_states=True).hidden_states[1:]
        errors = [
            ((a - b).square().sum(-1) / b.square().sum(-1))[mask].mean()
            for a, b in zip(found, expected, strict=True)
        ]
        total += float(torch.stack(errors).mean())
    return total


@pytest.mark.parametrize("padding", [True, False])
def test_the_error_is_that_of_the_layers_outputs(padding: bool) -> None:
    model, data = spoilt(), batches(3)
    with observing(model, {}):
        reconstruction = refining.Reconstruction(model, refining.quantized_layers(model), padding)
        found = float(reconstruction.error(data))
    # The same fp32 terms, summed over the channels in another order.
    assert found == pytest.approx(by_hand(model, data, padding), rel=1e-5)


def test_bad_ranges_are_mended_and_nothing_else_changes() -> None:
    model, data = spoilt(), batches()
    ranges, weights = models.ranges(model), {k: v.clone() for k, v in model.named_parameters()}
    before = by_hand(model, data)
    assert refine_ranges(model, data, epochs=6) is model
    assert by_hand(model, data) * 2 < before
    after = models.ranges(model)
    assert after[WIDE] * 2 < ranges[WIDE]
    assert after[NARROW] > 1.5 * ranges[NARROW]
    models.assert_equal(dict(model.named_parameters()), weights)
    same = {path for path, amax in after.items() if torch.equal(amax, ranges[path])}
    assert same == {path for path in after if path.endswith("_weight_quantizer")}


def test_the_result_is_reproducible_and_of_the_batches() -> None:
    found = [
        models.ranges(refine_ranges(spoilt(), data)) for data in (batches(), iter(batches()), batches(4))
    ]
    models.assert_equal(found[0], found[1])
    assert found[0][WIDE] != found[2][WIDE]


def test_what_gains_nothing_on_the_batches_held_back_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = calibrate(models.uncalibrated(), batches())
    ranges = models.ranges(model)
    monkeypatch.setattr(refining, "RATE", 5.0)  # every step is far too long
    models.assert_equal(models.ranges(refine_ranges(model, batches())), ranges)


@pytest.mark.parametrize(
    ("count", "held", "learned"), [(1, [0], [0]), (3, [1], [0, 2]), (10, [1, 9], [0, 2, 3])]
)
def test_one_batch_in_eight_is_held_back(
    count: int, held: list[int], learned: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, taught, judged = spoilt(), batches(count), [], []
    loss, error = refining.Reconstruction.loss, refining.Reconstruction.error

    def watch_loss(self: Any, batch: Any) -> Tensor:
        if torch.is_grad_enabled():
            assert all(parameter.grad is None for parameter in model.parameters()), (
                "a step's gradient is of its batch"
            )
            taught.append(batch)
        return loss(self, batch)

    def watch_error(self: Any, given: Any) -> Tensor:
        judged.append(given)
        return error(self, given)

    monkeypatch.setattr(refining.Reconstruction, "loss", watch_loss)
    monkeypatch.setattr(refining.Reconstruction, "error", watch_error)
    refine_ranges(model, data, epochs=1)
    places = [next(i for i, given in enumerate(data) if given is batch) for batch in taught]
    assert set(places) >= set(learned)
    assert set(places) == set(range(count)) - (set(held) if count > 1 else set())
    assert len(places) == len(set(places))
    assert [[next(i for i, given in enumerate(data) if given is b) for b in some] for some in judged] == [
        held
    ] * 2


@pytest.mark.parametrize("name", ["BertForMultipleChoice", "BertLMHeadModel", models.CROSS])
def test_every_kind_of_model_is_refined(name: str) -> None:
    model = spoilt(name, "bert.")
    before = models.ranges(model)
    refine_ranges(model, batches(name=name))
    after = models.ranges(model)
    assert after[f"bert.{WIDE}"] < before[f"bert.{WIDE}"]
    assert after[f"bert.{NARROW}"] > before[f"bert.{NARROW}"]


def test_ranges_that_are_learned_stay_parameters() -> None:
    model = train_ranges(spoilt()).train()
    refine_ranges(model, batches())
    quantizer = model.get_submodule(WIDE)
    assert type(quantizer) is LSQQuantizer
    assert "_amax" in quantizer._parameters
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_range_of_zero_and_one_per_channel_stay() -> None:
    overrides = ("*.value._input_quantizer=axis:2",)
    model = calibrate(quantize(models.float_model(), QDQConfig(overrides=overrides)), batches(2))
    zero = model.get_submodule(NARROW)
    zero.amax = 0.0
    before = models.ranges(model)
    after = models.ranges(refine_ranges(model, batches()))
    assert float(after[NARROW]) == 0
    per_channel = [path for path in before if path.endswith("value._input_quantizer")]
    assert len(per_channel) == 2
    assert all(torch.equal(after[path], before[path]) for path in per_channel)


def broken() -> PreTrainedModel:
    model = models.calibrated()
    with torch.no_grad():
        model.encoder.layer[1].output.dense.bias[0] = torch.nan
    return model


HEAD = QDQConfig(linears=False, matmuls=False, residual_adds=False, pooler=True)


@pytest.mark.parametrize(
    ("model", "given", "options", "error", "message"),
    [
        (models.float_model, batches(1), {}, NotQuantizedError, r"qdqpatch\.quantize"),
        (models.uncalibrated, batches(1), {}, CalibrationError, "40 quantizers have no range yet, the first"),
        (models.calibrated, [], {}, CalibrationError, "no calibration batch"),
        (models.calibrated, batches(1), {"epochs": 0}, ConfigError, "positive integer, not 0"),
        (models.calibrated, [*batches(3), {"input_idz": 1}], {}, Exception, "input_ids"),
        (broken, batches(2), {}, CalibrationError, "NaN or infinite"),
        (
            lambda: calibrate(quantize(models.float_model(), HEAD), batches(1)),
            batches(1),
            {},
            ConfigError,
            "no layer with a range",
        ),
    ],
)
def test_errors_leave_the_model_as_it_was(
    model: Callable[[], PreTrainedModel],
    given: list[Any],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    models.assert_refused(lambda changed: refine_ranges(changed, given, **options), model(), error, message)


def test_progress() -> None:
    steps: list[tuple[int, int]] = []
    refine_ranges(spoilt(), batches(9), epochs=2, step=lambda done, total: steps.append((done, total)))
    # One of eight batches is held back: of nine the second one.
    assert steps == [(done, 16) for done in range(1, 17)]
