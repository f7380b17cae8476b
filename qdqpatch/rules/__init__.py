"""Which rules a model takes: those of its architecture, or those that its structure shows."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from qdqpatch.rules.architectures import ARCHITECTURES
from qdqpatch.rules.base import Rule
from qdqpatch.rules.linears import Linears
from qdqpatch.rules.structural import member_classes, structural_rules


def has_rules(model: PreTrainedModel) -> bool:
    """Whether the model's type has a table, and the model is made of its classes."""
    return _table_rules(model) is not None


def rules_of(model: PreTrainedModel) -> tuple[Rule, ...]:
    """Return the rules of the model's architecture, or what its structure shows where it has no table.

    A model of a known type that is made of other classes, as remote code is, counts as unknown.
    """
    rules = _table_rules(model)
    return structural_rules(model) if rules is None else rules


def _table_rules(model: PreTrainedModel) -> tuple[Rule, ...] | None:
    for architecture in ARCHITECTURES.get(model.config.model_type, ()):
        rules = architecture.rules()
        if rules is not None and _is_made_of(model, rules):
            return rules
    return None


def _is_made_of(model: nn.Module, rules: tuple[Rule, ...]) -> bool:
    """Whether the model has layers of the rules' classes, or no layers at all."""
    layers = next(rule.inside for rule in rules if isinstance(rule, Linears))
    return any(isinstance(module, layers) for module in model.modules()) or not member_classes(model)
