"""The losses of distillation against their formulas, and the Trainer that uses them."""

import copy
import math
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from qdqpatch.errors import ConfigError
from qdqpatch.nn.pooling import Dense, Pooling, SentenceHead
from qdqpatch.patching.quantize import dequantize
from qdqpatch.training import Distillation, DistillationTrainer, distillation_loss, train_ranges

HEADS = [
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForMultipleChoice",
    "BertForQuestionAnswering",
    "BertForMaskedLM",
    "BertModel",
]
EXACT = {"rtol": 1e-5, "atol": 1e-7}
"""fp32 sums in another order."""


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return sum p (log p - log q) over the last dimension."""
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    return (p * (p.log() - q.log())).sum(-1)


def damaged(name: str) -> PreTrainedModel:
    """Return a calibrated model whose weights are no longer the float model's."""
    model = models.calibrated(name)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


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


def test_a_trainer_pools_by_its_head_and_leaves_it(tmp_path: Path) -> None:
    dense = Dense(torch.nn.Linear(24, 5).double(), torch.nn.Tanh())
    head = SentenceHead(Pooling(["cls"]), [dense])
    before = copy.deepcopy(head.state_dict())
    model, teacher = train_ranges(damaged("BertModel")), models.float_model("BertModel")
    training = trainer(model, tmp_path, "BertModel", steps=2, teacher=teacher, head=head)
    batch = models.inputs("BertModel")
    mask = batch["attention_mask"]
    loss = training.compute_loss(model.eval(), dict(batch))
    with torch.no_grad():
        one, other = (head.float()(which(**batch).last_hidden_state, mask) for which in (model, teacher))
    expected = 1 - torch.cosine_similarity(one, other).mean()
    assert float(loss.detach()) == pytest.approx(float(expected), abs=1e-6)
    training.train()
    models.assert_equal(dict(head.double().state_dict()), before)


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


def trainer(
    model: PreTrainedModel, folder: Path, name: str, steps: int = 12, batch: int = 4, **options: Any
) -> DistillationTrainer:
    settings = options.pop("settings", {})
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        **settings,
    )
    batch = models.inputs(name, seed=4) | options.pop("labels", {})
    examples = [{key: value[row] for key, value in batch.items()} for row in range(2)] * 4
    return DistillationTrainer(model, arguments, train_dataset=examples, **options)


def losses(training: DistillationTrainer) -> list[float]:
    training.train()
    return [entry["loss"] for entry in training.state.log_history if "loss" in entry]


@pytest.mark.parametrize("name", HEADS)
def test_every_head_comes_nearer_to_its_teacher_without_labels(name: str, tmp_path: Path) -> None:
    model, teacher = train_ranges(damaged(name)), models.float_model(name)
    found = losses(trainer(model, tmp_path, name, teacher=teacher))
    assert len(found) == 12
    assert min(found[-3:]) < 0.5 * found[0]
    models.assert_equal(dict(teacher.state_dict()), dict(models.float_model(name).state_dict()))
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("part", ["hidden_states", "attentions"])
def test_other_parts_of_the_loss_train_too(part: str, tmp_path: Path) -> None:
    name = "BertForSequenceClassification"
    parts = Distillation(logits=0, **{part: 1.0})
    found = losses(
        trainer(damaged(name), tmp_path, name, teacher=models.float_model(name), distillation=parts)
    )
    assert min(found[-3:]) < 0.7 * found[0]


def test_the_teacher_has_no_dropout(tmp_path: Path) -> None:
    name = "BertForSequenceClassification"
    training = trainer(models.calibrated(name), tmp_path, name, teacher=models.float_model(name).train())
    training.train()
    assert not any(module.training for module in training.teacher.modules())


def test_without_a_teacher_it_is_the_student_without_quantizers(tmp_path: Path) -> None:
    name = "BertForSequenceClassification"
    model = damaged(name)
    training = trainer(model, tmp_path, name)
    expected = dequantize(copy.deepcopy(model))
    models.assert_equal(dict(training.teacher.state_dict()), dict(expected.state_dict()))
    training.train()
    models.assert_equal(dict(training.teacher.state_dict()), dict(expected.state_dict()))
    training.save_model(str(tmp_path / "saved"))
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == model.state_dict().keys()


def test_the_loss_of_labels_needs_no_other(tmp_path: Path) -> None:
    name = "BertForSequenceClassification"
    training = trainer(damaged(name), tmp_path, name, distillation=Distillation(logits=0, labels=1.0))
    batch = models.inputs(name) | {"labels": torch.tensor([0, 2])}
    loss = training.compute_loss(training.model.eval(), dict(batch))
    assert float(loss.detach()) == float(training.model(**batch).loss.detach())


def test_models_may_return_tuples(tmp_path: Path) -> None:
    name = "BertForSequenceClassification"
    training = trainer(damaged(name), tmp_path, name, teacher=models.float_model(name))
    batch = models.inputs(name)
    loss = training.compute_loss(training.model.eval(), dict(batch))
    for model in (training.model, training.teacher):
        model.config.return_dict = False
    assert torch.equal(training.compute_loss(training.model, dict(batch)), loss)


@pytest.mark.parametrize("by_labels", [False, True])
def test_gradients_that_accumulate_are_those_of_the_whole_batch(by_labels: bool, tmp_path: Path) -> None:
    """The halves are as long as each other; what differs is the order of fp32 sums."""
    name, found = "BertForSequenceClassification", []
    options: dict[str, Any] = {"teacher": models.float_model(name)}
    if by_labels:  # by which the Trainer would count, and sum the halves instead
        options |= {"labels": {"labels": torch.tensor([0, 2])}, "distillation": Distillation(labels=1.0)}
    for batch, accumulate in ((4, 1), (2, 2)):
        model = train_ranges(damaged(name))
        settings = {"gradient_accumulation_steps": accumulate, "max_grad_norm": 0.0, "optim": "sgd"}
        trainer(model, tmp_path, name, 2, batch, settings=settings, **options).train()
        found.append(dict(model.named_parameters()))
    for path, parameter in found[0].items():
        torch.testing.assert_close(parameter, found[1][path], rtol=1e-5, atol=1e-7, msg=path)
    assert not torch.equal(found[0]["classifier.weight"], damaged(name).classifier.weight)


def test_learned_ranges_have_a_rate_of_their_own(tmp_path: Path) -> None:
    name = "BertForSequenceClassification"
    for given, expected in ((None, 127 * 2e-3), (0.5, 0.5)):
        training = trainer(train_ranges(models.calibrated(name)), tmp_path, name, range_lr=given)
        groups = training.create_optimizer().param_groups
        assert [group["lr"] for group in groups] == [2e-3, 2e-3, expected]
        assert training.create_optimizer() is training.optimizer


def test_a_teacher_that_cannot_teach_is_refused(tmp_path: Path) -> None:
    name = "BertForSequenceClassification"
    with pytest.raises(ConfigError, match="The teacher is quantized: pass the float model"):
        trainer(models.calibrated(name), tmp_path, name, teacher=models.calibrated(name))
    with pytest.raises(ConfigError, match="a BertModel and the student a BertForSequenceClassification"):
        trainer(models.calibrated(name), tmp_path, name, teacher=models.float_model())
    by_labels = Distillation(logits=0, labels=1)
    with pytest.raises(ConfigError, match="The loss has no part for the teacher"):
        trainer(
            models.calibrated(name),
            tmp_path,
            name,
            teacher=models.float_model(name),
            distillation=by_labels,
        )
