"""Ranking units, by outputs and by the metric; and that the model is left as it was."""

import models
import pytest
import sensitivities
import torch
from tiny_tasks import make
from torch import Tensor, nn
from transformers import PreTrainedModel

import qdqpatch
from qdqpatch.errors import ConfigError, DataError, NotQuantizedError
from qdqpatch.evaluation.predicting import batches
from qdqpatch.patching.apply import named_quantizers
from qdqpatch.sensitivity import Sensitivity, find_units, measure, search
from qdqpatch.sensitivity.subject import Subject
from qdqpatch.tasks.feature_extraction import FeatureExtraction
from qdqpatch.tasks.fill_mask import FillMask
from qdqpatch.tasks.multiple_choice import Choice, MultipleChoice
from qdqpatch.tasks.question_answering import Question, QuestionAnswering
from qdqpatch.tasks.token_classification import Sentence, TokenClassification
from qdqpatch.tasks.unlabelled import Text

Flags = dict[str, bool]


def disabled(model: nn.Module) -> Flags:
    return {path: not quantizer.is_enabled for path, quantizer in named_quantizers(model)}


@pytest.fixture
def model() -> PreTrainedModel:
    """A calibrated classifier, one of whose quantizers is off."""
    return sensitivities.calibrated(qdqpatch.QDQConfig(overrides={"*.0.*.query._input_quantizer": False}))


@pytest.mark.parametrize("by_metric", [False, True])
@pytest.mark.parametrize("name", ["layer 0, attention", "layer 1, feed-forward add"])
def test_a_unit_with_a_ruinous_range_is_the_costliest(
    model: PreTrainedModel, name: str, by_metric: bool
) -> None:
    for path in sensitivities.unit(model, name).quantizers:
        quantizer = model.get_submodule(path)
        quantizer.load_range(quantizer.amax * 1e-3)
    found = measure(model, sensitivities.task(), sensitivities.labelled(), by_metric=by_metric)
    costs = [cost.cost for cost in found.costs]
    assert found.costs[0].unit.name == name
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 10 * costs[1]
    assert {cost.unit for cost in found.costs} == set(find_units(model))
    assert found.measure == ("drop of accuracy in percent" if by_metric else "KL divergence")


def test_a_cost_is_that_of_a_model_with_this_unit_alone_quantized(model: PreTrainedModel) -> None:
    """The same by hand: a float model and one quantized by a configuration, on one text at a time."""
    task, examples = sensitivities.task(), sensitivities.labelled()[:5]
    found = measure(model, task, examples, batch_size=2)
    unit = found.costs[0].unit
    alone = qdqpatch.QDQConfig(overrides={"*": False} | dict.fromkeys(unit.quantizers, True))
    by_hand = qdqpatch.quantize(sensitivities.classifier(), alone)
    for path in unit.quantizers:
        by_hand.get_submodule(path).load_range(model.get_submodule(path).amax)
    total = 0.0
    for batch in batches(task, task.features(examples), 1):
        with torch.no_grad():
            p, q = (
                model(**batch).logits[0].double().softmax(-1)
                for model in (sensitivities.classifier(), by_hand)
            )
        total += float((p * (p / q).log()).sum())
    # Padding and another attention function change the last bits of the fp32 logits that are compared.
    assert found.costs[0].cost == pytest.approx(total / 5, rel=1e-3)


QUESTION = Question("the cat sat", "the cat sat on the mat", ("mat",), (19,))
TEXT = Text("the cat sat on the mat")
HEADS = {
    "BertForQuestionAnswering": (QuestionAnswering, QUESTION, "unchanged predictions"),
    "BertForTokenClassification": (TokenClassification, Sentence(("the", "cat")), "unchanged predictions"),
    "BertForMultipleChoice": (MultipleChoice, Choice("the", ("cat", "mat s"), None), "unchanged predictions"),
    "BertForMaskedLM": (FillMask, TEXT, "perplexity"),
    "BertModel": (FeatureExtraction, TEXT, "cosine"),
}


@pytest.mark.parametrize("head", HEADS)
def test_costs_of_each_head(head: str) -> None:
    kind, example, metric = HEADS[head]
    task, float_model = make(kind, head, 24)
    model = qdqpatch.quantize(float_model)
    qdqpatch.calibrate(model, batches(task, task.features([example]), 1))
    found = measure(model, task, [example])
    assert len(found.costs) == 8
    assert all(0 < cost.cost < 0.1 for cost in found.costs)
    assert found.measure == ("1 - cosine" if head == "BertModel" else "KL divergence")
    # Embeddings need no labels, so it makes no difference that there are none.
    mixed = search(model, task, [example], found, 1e6, labelled=metric == "perplexity")
    sign = -1 if metric == "perplexity" else 1
    loss = sign * (mixed.float_value - mixed.trials[0].value)
    assert mixed.metric == metric
    assert mixed.trials[0].drop == pytest.approx(100 * loss / mixed.float_value, abs=1e-9)
    assert mixed.limit == mixed.float_value - sign * 1e4 * mixed.float_value


@pytest.mark.parametrize("by_metric", [False, True])
def test_the_model_is_left_as_it_was(model: PreTrainedModel, by_metric: bool) -> None:
    model.train()
    model.bert.encoder.layer[1].eval()
    before, flags = models.snapshot(model), disabled(model)
    found = measure(model, sensitivities.task(), sensitivities.labelled(), by_metric=by_metric)
    search(model, sensitivities.task(), sensitivities.labelled(), found, 0.0)
    models.assert_unchanged(model, before)
    assert disabled(model) == flags
    assert sum(flags.values()) == 1


@pytest.mark.parametrize("by_metric", [False, True])
def test_the_model_is_left_as_it_was_if_a_batch_fails(model: PreTrainedModel, by_metric: bool) -> None:
    task, examples = sensitivities.task(), sensitivities.labelled()
    found = measure(model, task, examples)
    calls = 0

    def fail(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("out of memory")

    model.train()
    handle = model.classifier.register_forward_pre_hook(fail)
    before, flags = models.snapshot(model), disabled(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        measure(model, task, examples, by_metric=by_metric)
    calls = 0
    with pytest.raises(RuntimeError, match="out of memory"):
        search(model, task, examples, found, 0.0, labelled=by_metric)
    models.assert_unchanged(model, before)
    assert disabled(model) == flags
    handle.remove()


def test_the_texts_are_tokenized_once(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    task, counts = sensitivities.task(), []
    features = task.features
    monkeypatch.setattr(task, "features", lambda examples: counts.append(len(examples)) or features(examples))
    measure(model, task, sensitivities.labelled())
    assert counts == [32]


def test_texts_of_like_length_run_together(model: PreTrainedModel) -> None:
    subject = Subject.of(model, sensitivities.task(), sensitivities.labelled(), 3)
    lengths = [int(length) for batch in subject.batches() for length in batch["attention_mask"].sum(-1)]
    assert lengths == sorted(len(feature["input_ids"]) for feature in subject.features)


def test_progress_ends_at_its_total(model: PreTrainedModel) -> None:
    for by_metric in (False, True):
        steps: list[tuple[str, int, int]] = []
        measure(
            model,
            sensitivities.task(),
            sensitivities.labelled(),
            by_metric=by_metric,
            step=lambda *counts: steps.append(counts),  # noqa: B023 - called before the next round
        )
        total = 9 if by_metric else 2 * 9
        assert steps == [("Ranking", done, total) for done in range(1, total + 1)]


def test_what_cannot_be_measured(model: PreTrainedModel) -> None:
    task, examples = sensitivities.task(), sensitivities.labelled()
    with pytest.raises(DataError, match="There are no examples"):
        measure(model, task, [])
    with pytest.raises(NotQuantizedError):
        measure(sensitivities.classifier(), task, examples)
    wrong = [type(example)(example.text, None, (example.label + 1) % 3) for example in examples]
    with pytest.raises(ConfigError, match="accuracy on these 32 examples is 0, of which nothing can"):
        measure(model, task, wrong, by_metric=True)


def test_as_data(model: PreTrainedModel) -> None:
    found = measure(model, sensitivities.task(), sensitivities.labelled())
    assert isinstance(found, Sensitivity)
    data = found.to_dict()
    assert (data["measure"], data["examples"], len(data["units"])) == ("KL divergence", 32, 8)
    first = found.costs[0]
    assert data["units"][0] == {
        "name": first.unit.name,
        "kind": first.unit.kind,
        "cost": first.cost,
        "quantizers": list(first.unit.quantizers),
    }
