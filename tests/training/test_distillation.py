"""The losses of distillation against their formulas."""

import math
from typing import Any

import models
import pytest
import torch
from students import HEADS, damaged
from torch import Tensor

from qdqpatch.errors import ConfigError
from qdqpatch.nn.pooling import Pooling, SentenceHead
from qdqpatch.training import Distillation, distillation_loss

EXACT = {"rtol": 1e-5, "atol": 1e-7}
"""fp32 sums in another order."""


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return sum p (log p - log q) over the last dimension."""
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    return (p * (p.log() - q.log())).sum(-1)


def pair(name: str, **needed: bool) -> tuple[Any, Any, dict[str, Tensor]]:
    """Return the outputs of a quantized model and of its float model for a padded batch, and the batch."""
    inputs = models.inputs(name)
    with torch.no_grad():
        teacher = models.build(name, attn_implementation="eager")
        return damaged(name)(**inputs, **needed), teacher(**inputs, **needed), inputs


def by_hand(name: str, student: Any, teacher: Any, inputs: dict[str, Tensor]) -> Tensor:
    mask = inputs["attention_mask"].bool()
    if name in ("BertForSequenceClassification", "BertForMultipleChoice"):
        return 16 * kl(student.logits / 4, teacher.logits / 4).mean()
    if name in ("BertForTokenClassification", "BertForMaskedLM"):
        return kl(student.logits, teacher.logits)[mask].mean()
    if name == "BertForQuestionAnswering":
        rows = [
            kl(getattr(student, name)[row][mask[row]], getattr(teacher, name)[row][mask[row]])
            for name in ("start_logits", "end_logits")
            for row in range(2)
        ]
        return torch.stack(rows).mean()
    pooled = [
        torch.stack([states[row][mask[row]].double().mean(0) for row in range(2)])
        for states in (student.last_hidden_state, teacher.last_hidden_state)
    ]
    return 1 - torch.cosine_similarity(*pooled).mean()


@pytest.mark.parametrize("name", HEADS)
def test_the_loss_of_outputs(name: str) -> None:
    student, teacher, inputs = pair(name)
    loss = distillation_loss(student, teacher, inputs, Distillation())
    assert (loss.dtype, loss.dim()) == (torch.float32, 0)
    expected = by_hand(name, student, teacher, inputs)
    assert expected > 1e-6
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=1e-7)  # KL cancels most of its terms
    assert float(distillation_loss(teacher, teacher, inputs, Distillation())) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["BertForTokenClassification", "BertForMaskedLM"])
def test_positions_whose_label_is_ignored_count_for_nothing(name: str) -> None:
    student, teacher, inputs = pair(name)
    labels = torch.full((2, 8), -100)
    labels[0, 3], labels[1, 1], labels[1, 7] = 1, 2, 1  # the last one is padding
    loss = distillation_loss(student, teacher, {**inputs, "labels": labels}, Distillation())
    divergences = kl(student.logits, teacher.logits)
    torch.testing.assert_close(
        loss.double(), (divergences[0, 3] + divergences[1, 1]) / 2, rtol=1e-3, atol=1e-7
    )


@pytest.mark.parametrize("name", HEADS)
def test_what_no_query_sees_counts_for_nothing_either(name: str) -> None:
    """Masks of queries by keys, as transformers takes them for packed sequences."""
    student, teacher, inputs = pair(name, output_hidden_states=True, output_attentions=True)
    parts = Distillation(hidden_states=1.0, attentions=1.0)
    expected = distillation_loss(student, teacher, inputs, parts)
    mask = inputs["attention_mask"].reshape(-1, 1, 1, 8).bool()
    own = mask & torch.eye(8, dtype=torch.bool)  # every token sees itself alone
    for seen in (mask, mask.expand(-1, 2, 8, -1), own, torch.where(own, 0.0, torch.finfo(torch.float32).min)):
        loss = distillation_loss(student, teacher, inputs | {"attention_mask": seen}, parts)
        assert torch.equal(loss, expected)
    everything = inputs | {"attention_mask": torch.ones_like(inputs["attention_mask"])}
    one_for_all = inputs | {"attention_mask": torch.zeros(1, 1, 8, 8)}
    assert torch.equal(
        distillation_loss(student, teacher, one_for_all, parts),
        distillation_loss(student, teacher, everything, parts),
    )


def test_temperature() -> None:
    student, teacher, inputs = pair("BertForSequenceClassification")
    loss = distillation_loss(student, teacher, inputs, Distillation(temperature=3.0))
    expected = 9 * kl(student.logits / 3, teacher.logits / 3).mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", HEADS)
def test_hidden_states_and_attentions(name: str) -> None:
    student, teacher, inputs = pair(name, output_hidden_states=True, output_attentions=True)
    mask = inputs["attention_mask"].reshape(-1, 8).bool()
    states = [
        (one - other)[mask].double().square().mean()
        for one, other in zip(student.hidden_states, teacher.hidden_states, strict=True)
    ]
    seen = (mask[:, None, :, None] & mask[:, None, None, :]).expand(-1, 2, -1, -1)
    attentions = [
        (one - other)[seen].double().square().mean()
        for one, other in zip(student.attentions, teacher.attentions, strict=True)
    ]
    for parts, expected in (
        (Distillation(logits=0, hidden_states=2.0), 2 * sum(states) / 3),
        (Distillation(logits=0, attentions=5.0), 5 * sum(attentions) / 2),
    ):
        loss = distillation_loss(student, teacher, inputs, parts)
        torch.testing.assert_close(loss.double(), expected, **EXACT)
        assert expected > 0


def test_parts_are_added_with_their_weights() -> None:
    name = "BertForSequenceClassification"
    student, teacher, inputs = pair(name, output_hidden_states=True)
    student["loss"] = torch.tensor(0.75)
    one, two = Distillation(), Distillation(logits=0, hidden_states=1)
    apart = [float(distillation_loss(student, teacher, inputs, settings)) for settings in (one, two)]
    together = Distillation(logits=2.0, hidden_states=3.0, labels=4.0)
    found = float(distillation_loss(student, teacher, inputs, together))
    assert found == pytest.approx(2 * apart[0] + 3 * apart[1] + 3, rel=1e-6)


def loss_of_states(student: torch.Tensor, teacher: torch.Tensor, head: SentenceHead | None = None) -> float:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    ours, theirs = {"last_hidden_state": student}, {"last_hidden_state": teacher}
    inputs = {"attention_mask": mask}
    return float(distillation_loss(ours, theirs, inputs, Distillation(), head=head))


def test_padding_is_not_pooled() -> None:
    student, teacher = torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(3))
    expected = loss_of_states(student, teacher)
    student[1, 2:] += 100.0
    assert loss_of_states(student, teacher) == expected > 0.01


def test_embeddings_are_those_of_the_head() -> None:
    student, teacher = torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(3))
    first = SentenceHead(Pooling(["cls"]))
    expected = 1 - torch.cosine_similarity(student[:, 0], teacher[:, 0]).mean()
    assert loss_of_states(student, teacher, first) == pytest.approx(float(expected), abs=1e-6)
    student[:, 1:] += 100.0
    assert loss_of_states(student, teacher, first) == pytest.approx(float(expected), abs=1e-6)


def test_what_cannot_be_distilled_is_an_error() -> None:
    for settings, message in (
        ({"logits": -1.0}, "The weights must be numbers of at least 0, and not all of them 0: "),
        ({"logits": 0.0}, "The weights must be numbers of at least 0, and not all of them 0: "),
        ({"labels": math.nan}, "The weights must be numbers of at least 0, and not all of them 0: "),
        ({"hidden_states": math.inf}, "The weights must be numbers of at least 0, and not all of them 0: "),
        ({"temperature": 0.0}, "temperature must be a number above 0, not 0.0."),
        ({"temperature": math.nan}, "temperature must be a number above 0, not nan."),
    ):
        with pytest.raises(ConfigError) as raised:
            Distillation(**settings)
        assert str(raised.value).startswith(message)
    student, teacher, inputs = pair("BertForSequenceClassification")
    for parts, message in (
        (Distillation(hidden_states=1), "Distillation of hidden_states needs outputs with hidden_states"),
        (Distillation(attentions=1), "Distillation of attentions needs outputs with attentions"),
        (Distillation(labels=1), "Distillation with labels needs labels in every batch."),
    ):
        with pytest.raises(ConfigError, match=message):
            distillation_loss(student, teacher, inputs, parts)
    with pytest.raises(ConfigError, match="There is no loss for outputs of the names something"):
        distillation_loss({"something": torch.ones(2)}, {}, inputs, Distillation())
    student, teacher, inputs = pair("BertModel", output_hidden_states=True)
    teacher["hidden_states"] = teacher["hidden_states"][:2]
    with pytest.raises(ConfigError, match="needs a teacher of as many layers and of the same width"):
        distillation_loss(student, teacher, inputs, Distillation(hidden_states=1))
