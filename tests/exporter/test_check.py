"""The comparison of a file's outputs with the model's."""

from collections.abc import Callable

import models
import numpy as np
import pytest

from qdqpatch.errors import ExportError
from qdqpatch.exporter.check import JITTERS, OutputComparison, compare, own_noise, remembered, require_equal
from qdqpatch.exporter.tracing import outputs_of

Run = Callable[[dict], dict]


def giving(**outputs: list) -> Run:
    return lambda batch: {name: np.array(value, np.float32) for name, value in outputs.items()}


def test_differences_are_in_steps_of_the_outputs_range() -> None:
    (found,) = compare(giving(hidden=[[0, -254], [2, 4]]), giving(hidden=[[0, -250], [2, 4]]), [{}, {}])
    assert found == OutputComparison("hidden", mean=0.5, largest=2.0, predictions=0, changed=0)


def test_predictions_are_of_logits() -> None:
    expected = giving(start_logits=[[1, 2], [2, 1]], probabilities=[[1, 2], [2, 1]])
    found = giving(start_logits=[[2, 1], [2, 1]], probabilities=[[2, 1], [2, 1]])
    logits, others = compare(expected, found, [{}])
    assert (logits.predictions, logits.changed) == (2, 1)
    assert (others.predictions, others.changed) == (0, 0)


def test_predictions_of_several_labels_are_one_for_each() -> None:
    config = models.config("BertForSequenceClassification", problem_type="multi_label_classification")
    expected, found = giving(logits=[[1, 2, -1], [1, 5, -1]]), giving(logits=[[1, 2, 1], [-1, 5, -1]])
    (as_labels,) = compare(expected, found, [{}], config)
    assert (as_labels.predictions, as_labels.changed) == (6, 2)
    (as_classes,) = compare(expected, found, [{}])  # which sees nothing of it
    assert (as_classes.predictions, as_classes.changed) == (2, 0)


def test_predictions_of_scores_are_their_order() -> None:
    """Over all batches: a file that gives the same for everything changes every pair."""
    config = models.config("BertForSequenceClassification", num_labels=1)
    expected = iter([[[5.01], [5.02]], [[5.0], [5.02]]])
    (found,) = compare(
        lambda batch: {"logits": np.array(next(expected), np.float32)},
        giving(logits=[[5.01], [5.01]]),
        [{}, {}],
        config,
    )
    assert (found.predictions, found.changed) == (6, 5)
    assert found.mean < 0.5


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ExportError, match="There is no output to compare the file by"):
        compare(giving(), giving(), [{}])


def test_outputs_of_zeros_alone() -> None:
    (found,) = compare(giving(hidden=[[0, 0]]), giving(hidden=[[0, 1]]), [{}])
    assert found.largest == 1.0


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (giving(other=[[1.0]]), r"^The file gives other, and the model hidden\. Nothing was written"),
        (giving(), "The file gives no output, and the model hidden"),
        (giving(hidden=[[1.0]], more=[1.0]), "The file gives hidden, more, and the model hidden"),
        (giving(hidden=[[1.0, 2.0]]), r"hidden has the shape \(1, 2\) .* the model's has the shape \(1, 1\)"),
        (giving(hidden=[[np.nan]]), "or is not finite"),
        (giving(hidden=[[np.inf]]), "or is not finite"),
    ],
)
def test_outputs_that_cannot_be_compared(found: Run, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        compare(giving(hidden=[[1.0]]), found, [{}])


def comparison(mean: float = 0.0, predictions: int = 100, changed: int = 0) -> OutputComparison:
    return OutputComparison("logits", mean, 9.0, predictions, changed)


@pytest.mark.parametrize(
    ("found", "noise"),
    [
        (comparison(mean=0.15), comparison()),
        (comparison(mean=8.0), comparison(mean=5.0)),
        (comparison(mean=5.0), comparison(mean=0.5)),
        (comparison(changed=6), comparison()),
        (comparison(changed=41), comparison(changed=10)),
        (comparison(predictions=2, changed=1), comparison()),
    ],
)
def test_rounding_is_allowed(found: OutputComparison, noise: OutputComparison) -> None:
    require_equal([found], lambda: [noise])


@pytest.mark.parametrize(
    ("found", "noise", "message"),
    [
        (comparison(mean=0.16), comparison(), r"logits is off by 0\.16 steps .* \(allowed: 0\.15\)"),
        (comparison(mean=8.1), comparison(mean=5.0), r"off by 8\.10 steps .* \(allowed: 8\.00\)"),
        (comparison(mean=5.1), comparison(mean=0.5), r"off by 5\.10 steps .* \(allowed: 5\.00\)"),
        (comparison(changed=7), comparison(), r"7 of 100 predictions differ \(allowed: 6\)"),
        (comparison(changed=42), comparison(changed=10), r"42 of 100 predictions differ \(allowed: 41\)"),
        (comparison(predictions=2, changed=2), comparison(predictions=2), "2 of 2 predictions differ"),
    ],
)
def test_more_than_rounding_is_not(found: OutputComparison, noise: OutputComparison, message: str) -> None:
    with pytest.raises(ExportError, match=f"The file does not compute what the model does: .*{message}"):
        require_equal([comparison(), found], lambda: [comparison(), noise])


def test_the_models_own_noise_is_asked_for_only_where_it_matters() -> None:
    def noise() -> list[OutputComparison]:
        raise KeyError("asked")

    require_equal([comparison(mean=0.15, changed=6)], noise)
    for far in (comparison(mean=0.16), comparison(changed=7)):
        with pytest.raises(KeyError, match="asked"):
            require_equal([far], noise)


def test_own_noise_is_never_nothing_by_chance() -> None:
    """Models this small have no value near the border of two levels in the one run or the other."""
    for name in ("BertForTokenClassification", "BertForSequenceClassification"):
        model = models.calibrated(name)
        for seed in range(4):
            (noise,) = own_noise(model, outputs_of(model), [models.inputs(name, seed=seed)])
            assert 0 < noise.mean < 0.5


def test_own_noise_is_small_and_leaves_the_model_alone(arithmetic: str) -> None:
    model = models.calibrated("BertForTokenClassification")
    reference, batch = outputs_of(model), models.inputs()
    reference(batch)  # running leaves hooks of transformers on a model
    before = models.snapshot(model)
    (noise,) = own_noise(model, reference, [batch])
    models.assert_unchanged(model, before)
    assert (noise.output, noise.predictions) == ("logits", 16)
    assert noise.mean < 0.15
    seen = []

    def failing(batch: dict) -> dict:
        seen.append({quantizer.use_fb_fake_quant for _, quantizer in models.named_quantizers(model)})
        if len(seen) == 2:
            raise KeyError("stop")
        return reference(batch)

    with pytest.raises(KeyError):
        own_noise(model, failing, [batch])
    assert seen == ([{True}, {False}] if arithmetic == "fb" else [{False}, {True}])
    models.assert_unchanged(model, before)


def test_the_model_as_it_is_runs_once_for_its_own_noise() -> None:
    model, batches = models.calibrated("BertForTokenClassification"), [models.inputs(), models.inputs(seed=2)]
    reference, fed = outputs_of(model), []

    def counting(batch: dict) -> dict:
        fed.append(batch)
        return reference(batch)

    expected = remembered(counting)
    assert [*map(expected, batches)] == [*map(expected, batches)]
    assert len(fed) == 2
    noise = own_noise(model, counting, batches, expected=expected)
    assert len(fed) == 2 + (1 + JITTERS) * 2
    assert noise == own_noise(model, reference, batches)
