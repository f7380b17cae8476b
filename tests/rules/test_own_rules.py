"""An encoder that nobody knows: what its structure shows, and a rule of one's own for the rest."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

import qdqpatch
from qdqpatch.errors import QuantizationWarning
from qdqpatch.rules.matmuls import AttentionMatmuls


class NewConfig(PreTrainedConfig):
    model_type = "new"


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, states: Tensor) -> Tensor:
        return self.attend(self.query(states), self.key(states), states)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.bmm(torch.bmm(query, key.transpose(1, 2)).softmax(-1), value)


class NewLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixing = Mixing()

    def forward(self, states: Tensor) -> Tensor:
        return states + self.mixing(states)


class NewModel(PreTrainedModel):
    config_class = NewConfig

    def __init__(self, config: NewConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(NewLayer() for _ in range(2))
        self.post_init()

    def forward(self, states: Tensor) -> tuple[Tensor]:
        for layer in self.layers:
            states = layer(states)
        return (states,)


BATCH = {"states": torch.ones(1, 3, 8)}
RULE = AttentionMatmuls((Mixing,), (("attend", (("q", "k"), ("a", "v"))),))


def test_what_the_structure_does_not_show_is_told_and_found_by_the_audit() -> None:
    model = NewModel(NewConfig())
    with pytest.warns(
        QuantizationWarning, match=r"no rules for new .*matrix product of layers\.\{0\.\.1\}\.mixing"
    ):
        qdqpatch.quantize(model)
    misses = qdqpatch.audit(model, BATCH).misses
    assert [(miss.path, miss.kind) for miss in misses] == [
        (f"layers.{n}.mixing", "bmm") for n in (0, 0, 1, 1)
    ]


def test_a_rule_of_ones_own_reaches_it_and_nothing_is_warned_of() -> None:
    model = NewModel(NewConfig())
    found = qdqpatch.plan(model, rules=[RULE])
    assert not [miss for miss in found.misses if miss.wanted]
    assert found.unknown == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qdqpatch.quantize(model, rules=[RULE])
    assert qdqpatch.audit(model, BATCH).misses == ()


def test_a_rule_for_another_number_of_products_refuses() -> None:
    other = AttentionMatmuls((Mixing,), (("attend", (("q", "k"),)),))
    reasons = [
        miss.reason for miss in qdqpatch.plan(NewModel(NewConfig()), rules=[other]).misses if miss.wanted
    ]
    assert "has 2 matrix products where the rule needs 1" in reasons[0]
