"""Quantization-aware training with transformers' own `Trainer`."""

from pathlib import Path
from typing import Any

import models
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, Trainer, TrainingArguments

from qdqpatch.training import freeze_ranges, parameter_groups, train_ranges

NAME = "BertForSequenceClassification"
STEPS = 12
# Newer transformers call it by another name.
HAS_NEW_NAME = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
CHECKPOINTING = "activation_checkpointing" if HAS_NEW_NAME else "gradient_checkpointing"


def examples() -> list[dict[str, Tensor]]:
    batch = models.inputs(NAME, seed=4) | {"labels": torch.tensor([0, 2])}
    return [{name: value[row] for name, value in batch.items()} for row in range(2)] * 4


def trainer(model: PreTrainedModel, folder: Path, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=2e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_steps=STEPS // 2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        **options,
    )
    return Trainer(model=model, args=arguments, train_dataset=examples())


@pytest.mark.parametrize("options", [{}, {CHECKPOINTING: True}, {"bf16": True}], ids=str)
def test_training_learns_and_keeps_the_ranges(options: dict[str, Any], calibrated, tmp_path: Path) -> None:
    model = calibrated(NAME)
    ranges = models.ranges(model)
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    training = trainer(model, tmp_path, **options)
    training.train()
    losses = [entry["loss"] for entry in training.state.log_history if "loss" in entry]
    assert len(losses) == STEPS
    assert losses[-1] < 0.5 * losses[0]
    models.assert_equal(models.ranges(model), ranges)
    unchanged = [
        name for name, parameter in model.named_parameters() if torch.equal(parameter, weights[name])
    ]
    assert unchanged == []
    assert isinstance(model, models.model_class(NAME))


def test_a_trainers_checkpoint_loads(calibrated, tmp_path: Path) -> None:
    model = calibrated(NAME)
    trainer(model, tmp_path).train()
    folder = tmp_path / f"checkpoint-{STEPS}"
    loaded, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    models.assert_equal(dict(loaded.state_dict()), dict(model.state_dict()))
    models.assert_equal(models.outputs(loaded, NAME), models.outputs(model.eval(), NAME))
    assert sum(name.endswith("_amax") for name in load_file(folder / "model.safetensors")) == len(
        models.ranges(model)
    )


def test_a_loaded_model_trains_like_the_one_that_was_saved(calibrated, tmp_path: Path) -> None:
    model = calibrated(NAME)
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    for trained in (model, loaded):
        trainer(trained, tmp_path).train()
    models.assert_equal(dict(loaded.state_dict()), dict(model.state_dict()))


def test_training_resumes_where_it_stopped(calibrated, tmp_path: Path) -> None:
    model = calibrated(NAME)
    trainer(model, tmp_path).train()
    resumed = calibrated(NAME)
    trainer(resumed, tmp_path).train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS // 2}"))
    models.assert_equal(dict(resumed.state_dict()), dict(model.state_dict()))


def test_an_uncalibrated_model_trains_too(uncalibrated, tmp_path: Path) -> None:
    model = uncalibrated(NAME)
    training = trainer(model, tmp_path)
    training.train()
    losses = [entry["loss"] for entry in training.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert set(models.ranges(model).values()) == {None}


@pytest.mark.parametrize("options", [{}, {CHECKPOINTING: True}, {"bf16": True}], ids=str)
def test_learned_ranges_train_in_any_mode(options: dict[str, Any], calibrated, tmp_path: Path) -> None:
    model = train_ranges(calibrated(NAME))
    ranges = models.ranges(model)
    training = trainer(model, tmp_path, **options)
    training.train()
    losses = [entry["loss"] for entry in training.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    changed = [path for path, amax in models.ranges(model).items() if not torch.equal(amax, ranges[path])]
    assert sorted(changed) == sorted(ranges)  # a rate of 2e-2 moves every one
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"checkpoint-{STEPS}")
    models.assert_equal(dict(loaded.state_dict()), dict(freeze_ranges(model).state_dict()))


def test_checkpointing_changes_no_gradient(calibrated) -> None:
    found = []
    for checkpointing in (False, True):
        model = train_ranges(calibrated(NAME)).train()
        if checkpointing:
            getattr(model, f"{CHECKPOINTING}_enable")()
        found.append(models.gradients(model, NAME))
    models.assert_equal(*found)
    assert any(name.endswith("_amax") for name in found[0])


def test_training_with_learned_ranges_resumes_where_it_stopped(calibrated, tmp_path: Path) -> None:
    model = train_ranges(calibrated(NAME))
    trainer(model, tmp_path).train()
    resumed = train_ranges(calibrated(NAME))
    trainer(resumed, tmp_path).train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS // 2}"))
    models.assert_equal(dict(resumed.state_dict()), dict(model.state_dict()))


def test_a_loop_by_hand_and_one_of_accelerate_are_the_same(calibrated) -> None:
    batch = models.inputs(NAME) | models.labels(NAME)
    found = []
    for accelerated in (False, True):
        model = train_ranges(calibrated(NAME)).train()
        optimizer = torch.optim.AdamW(parameter_groups(model, lr=1e-3))
        accelerator = Accelerator(cpu=True)
        if accelerated:
            model, optimizer = accelerator.prepare(model, optimizer)
        for _ in range(3):
            loss = model(**batch).loss
            accelerator.backward(loss) if accelerated else loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(dict(accelerator.unwrap_model(model).state_dict()))
    models.assert_equal(*found)
    assert not torch.equal(found[0]["classifier.weight"], calibrated(NAME).classifier.weight)
