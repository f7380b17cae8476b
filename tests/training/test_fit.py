"""The training run itself: what the schedule asks for is what the optimizer does."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from qdqpatch.errors import ConfigError
from qdqpatch.tasks.base import Batch, Feature
from qdqpatch.training import fit as fitting
from qdqpatch.training.fit import fit
from qdqpatch.training.schedule import Schedule

NAME = "BertForSequenceClassification"
FEATURES: list[Feature] = [
    {"input_ids": [2, *range(5, 5 + length), 3], "attention_mask": [1] * (length + 2), "labels": length % 3}
    for length in (3, 4, 5, 6) * 4
]


def collate(features: Sequence[Feature]) -> Batch:
    longest = max(len(feature["input_ids"]) for feature in features)
    padded = {
        name: torch.tensor([feature[name] + [0] * (longest - len(feature[name])) for feature in features])
        for name in ("input_ids", "attention_mask")
    }
    return padded | {"labels": torch.tensor([feature["labels"] for feature in features])}


class Watched:
    """What the optimizer was told in each step, and what the model was given in each batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups: list[list[dict[str, Any]]] = []
        self.batches: list[int] = []
        self.autocast: set[bool] = set()
        step, watched = torch.optim.AdamW.step, self

        def spy(optimizer: torch.optim.AdamW, *rest: Any, **named: Any) -> Any:
            groups = [{key: group[key] for key in ("lr", "weight_decay")} for group in optimizer.param_groups]
            watched.groups.append(groups)
            return step(optimizer, *rest, **named)

        monkeypatch.setattr(torch.optim.AdamW, "step", spy)

    def model(self) -> PreTrainedModel:
        model = models.calibrated(NAME)

        def look(_: PreTrainedModel, __: tuple[()], inputs: dict[str, Tensor]) -> None:
            self.batches.append(len(inputs["input_ids"]))

        model.register_forward_pre_hook(look, with_kwargs=True)
        model.classifier.register_forward_pre_hook(
            lambda *_: self.autocast.add(torch.is_autocast_enabled("cpu"))
        )
        return model


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_the_optimizer_does_what_the_schedule_says(watched: Watched, tmp_path: Path) -> None:
    schedule = Schedule(epochs=2.5, lr=1e-3, batch_size=2, accumulate=2, warmup=0.3, weight_decay=0.25)
    fit(watched.model(), FEATURES, collate, tmp_path, schedule)
    assert watched.batches == [2] * 20
    # 2.5 epochs of 16 sequences in steps of 4 are 10 steps; in the first 3 the rate rises.
    rates = [step / 3 for step in range(3)] + [(1 + math.cos(math.pi * step / 7)) / 2 for step in range(7)]
    assert [group[0]["lr"] for group in watched.groups] == pytest.approx([1e-3 * rate for rate in rates])
    assert {group["weight_decay"] for groups in watched.groups for group in groups[:1]} == {0.25}
    assert {group["weight_decay"] for groups in watched.groups for group in groups[1:]} == {0.0}
    assert watched.autocast == {False}


def test_bf16_is_autocast(watched: Watched, tmp_path: Path) -> None:
    fit(watched.model(), FEATURES, collate, tmp_path, Schedule(bf16=True))
    assert watched.autocast == {True}


@pytest.mark.parametrize("kept", [True, False])
def test_dropout_is_off_unless_asked_for_and_comes_back(kept: bool, watched: Watched, tmp_path: Path) -> None:
    model = watched.model()
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    for layer in layers:
        layer.p = 0.25
    found: set[float] = set()
    layers[0].register_forward_pre_hook(lambda layer, _: found.add(layer.p))
    fit(model, FEATURES, collate, tmp_path, Schedule(dropout=kept))
    assert found == {0.25 if kept else 0.0}
    assert {layer.p for layer in layers} == {0.25}
    assert not model.training


def test_another_seed_is_another_order(tmp_path: Path) -> None:
    def order(seed: int) -> list[list[int]]:
        seen: list[list[int]] = []

        def remember(features: Sequence[Feature]) -> Batch:
            seen.append([len(feature["input_ids"]) for feature in features])
            return collate(features)

        schedule = Schedule(epochs=2, batch_size=2, seed=seed)
        fit(models.calibrated(NAME), FEATURES, remember, tmp_path / str(seed), schedule)
        return seen

    first = order(0)
    assert first == order(0)
    assert first != order(1)


def test_checkpoints_are_ten_and_two_of_them_stay(tmp_path: Path) -> None:
    schedule = Schedule(epochs=20, batch_size=16)
    written: list[str] = []

    def step(done: int, total: int, loss: float | None) -> None:
        written.extend(path.name for path in tmp_path.glob("checkpoint-*") if path.name not in written)

    fit(models.calibrated(NAME), FEATURES, collate, tmp_path, schedule, step=step)
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert kept == ["checkpoint-18", "checkpoint-20"]
    assert {*written, *kept} == {f"checkpoint-{number}" for number in range(2, 21, 2)}
    last = fitting.last_checkpoint(tmp_path)
    assert last == tmp_path / "checkpoint-20"
    (last / "trainer_state.json").unlink()  # as if it had been interrupted while it was written
    assert fitting.last_checkpoint(tmp_path) == tmp_path / "checkpoint-18"


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("epochs", 0, "above 0"),
        ("epochs", math.inf, "above 0"),
        ("lr", -1.0, "above 0"),
        ("lr", math.nan, "above 0"),
        ("batch_size", 0, "at least 1"),
        ("warmup", 1.0, "at least 0 and below 1"),
        ("weight_decay", -1.0, "at least 0"),
        ("accumulate", 0, "at least 1"),
        ("seed", -1, "from 0 to 4294967295"),
        ("seed", 2**32, "from 0 to 4294967295"),
    ],
)
def test_a_schedule_out_of_range_is_refused(name: str, value: float, wanted: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Schedule(**{name: value})
    assert str(raised.value) == f"{name} must be a number {wanted}, not {value}."


def test_steps_of_a_schedule() -> None:
    assert Schedule(epochs=0.3, batch_size=16).steps(1000) == 19
    assert Schedule(epochs=0.3, batch_size=16, accumulate=2).steps(1000) == 10
    assert Schedule(epochs=0.001).steps(10) == 1
