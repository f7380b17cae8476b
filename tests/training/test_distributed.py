"""Two processes that train on half of each batch end with the weights of one that trains on all of it."""

import os
import socket
import sys
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from processes import run_two
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from qdqpatch.training import DistillationTrainer, freeze_ranges, train_ranges

NAME = "BertForSequenceClassification"
STEPS = 3

pytestmark = pytest.mark.slow  # two processes have to import everything


def examples() -> list[dict[str, Tensor]]:
    """Return 12 examples of one length, so that the mean over a batch is the mean of its halves' means."""
    batches = [models.inputs(NAME, seed=seed, padded=False) for seed in range(6)]
    return [{name: value[row] for name, value in batch.items()} for batch in batches for row in range(2)]


def trained(folder: Path, batch_size: int) -> PreTrainedModel:
    """Train a model whose teacher is another one."""
    model = train_ranges(models.calibrated(NAME))
    teacher = models.float_model(NAME)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter *= 1.1
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=batch_size,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",  # Adam would make much of the last bits of small gradients
        max_grad_norm=0.0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        ddp_backend="gloo" if "RANK" in os.environ else None,
        seed=0,
    )
    DistillationTrainer(model, arguments, train_dataset=examples(), teacher=teacher).train()
    return freeze_ranges(model)


def work(folder: Path) -> None:
    torch.set_num_threads(1)
    state = trained(folder, batch_size=2).state_dict()
    torch.save(state, folder / f"state{os.environ['RANK']}")


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The state dict of each of the two processes."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_two(__file__, folder, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2")
    return [torch.load(folder / f"state{rank}", weights_only=True) for rank in (0, 1)]


def test_both_processes_have_the_same_weights_and_ranges(states: list[dict[str, Any]]) -> None:
    models.assert_equal(*states)


def test_they_are_those_of_one_process(states: list[dict[str, Any]], tmp_path: Path) -> None:
    """What differs is the order in which fp32 gradients are summed."""
    expected, before = trained(tmp_path, batch_size=4).state_dict(), models.calibrated(NAME).state_dict()
    assert states[0].keys() == expected.keys()
    moved = 0
    for name, value in expected.items():
        torch.testing.assert_close(states[0][name], value, rtol=1e-5, atol=1e-6, msg=name)
        moved += not torch.allclose(value, before[name], rtol=1e-4, atol=1e-5)
    assert moved > len(expected) // 3


if __name__ == "__main__":
    work(Path(sys.argv[1]))
