"""The Trainer that distils: what it learns, from whom, and what it leaves."""

import copy
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from safetensors.torch import load_file
from students import HEADS, damaged
from transformers import PreTrainedModel, TrainingArguments

from qdqpatch.errors import ConfigError
from qdqpatch.nn.pooling import Dense, Pooling, SentenceHead
from qdqpatch.patching.quantize import dequantize
from qdqpatch.training import Distillation, DistillationTrainer, train_ranges


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


def test_masks_of_queries_by_keys_and_embeddings_without_tokens(tmp_path: Path) -> None:
    name, parts = "BertForTokenClassification", Distillation(hidden_states=1.0, attentions=1.0)
    mask = models.inputs(name, seed=4)["attention_mask"].bool()[:, None, None].expand(-1, 1, 8, -1)
    options: dict[str, Any] = {"teacher": models.float_model(name), "distillation": parts, "steps": 2}
    expected = losses(trainer(damaged(name), tmp_path, name, **options))
    options["labels"] = {"attention_mask": mask}
    assert losses(trainer(damaged(name), tmp_path, name, **options)) == expected
    training = trainer(damaged(name), tmp_path, name, **options)
    words = training.model.get_input_embeddings()
    training.train_dataset = [
        {"inputs_embeds": words(example["input_ids"]).detach(), "attention_mask": example["attention_mask"]}
        for example in training.train_dataset
    ]
    assert all(0 < loss < 1 for loss in losses(training))


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
