"""Look at a model and find what would be quantized. Changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from torch import nn

from qdqpatch.config.config import WEIGHT_DIMS, QDQConfig
from qdqpatch.config.quantizer import QuantizerConfig
from qdqpatch.errors import ConfigError, OverrideError, UnsupportedModelError
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.names import OUTPUT
from qdqpatch.patching.adapters import check_adapters
from qdqpatch.patching.parts import Aliases, known_models, uncovered
from qdqpatch.patching.plan import SHOWN, Plan, Site
from qdqpatch.patching.positions import check_positions
from qdqpatch.patching.recorded import HEAD, KEY, Recorded, describe, recorded_rules
from qdqpatch.rules import has_rules, rules_of
from qdqpatch.rules.base import Match, Miss, Rule
from qdqpatch.rules.unreached import MATRIX_PRODUCT
from qdqpatch.spelling import spelled


def find_sites(
    model: nn.Module,
    config: QDQConfig | None = None,
    strict: bool = True,
    rules: Sequence[Rule] = (),
) -> Plan:
    """Apply the architecture's rules, the configuration and its overrides to a float model.

    Where the model's config has a record of the places of a checkpoint (`recorded.py`), those are taken, and
    of what the rules find the head's only.

    Args:
        model: A float transformers model; it is only read.
        config: What to quantize; None for the defaults.
        strict: Whether an override that matches nothing is an error. Loading turns this off, because
            the head that an override names may have been exchanged.
        rules: Rules of the caller's own, which come before the architecture's.

    Raises:
        UnsupportedModelError: If no rule knows the model, or nothing in it would be quantized.
        OverrideError: If an override matches no quantizer.
        ConfigError: If the configuration is no `QDQConfig`, an override makes a weight's range asymmetric,
            or the model has relative positions that are not computed, or adapters.
    """
    config = with_defaults(config)
    check_positions(model)
    if strict:
        check_adapters(model)
    used: set[str] = set()
    sites: list[Site] = []
    misses: list[Miss] = []
    places: list[tuple[str, str, Match]] = []
    roots = known_models(model)
    record = () if rules else getattr(model.config, KEY, ())
    for root_path, root in roots:
        aliases = Aliases(root_path, root)
        again = recorded_rules(record, aliases.of)
        for rule, match in _matches(root, (*again, *rules, *rules_of(root))):
            if isinstance(match, Match):
                if record and rule not in again and rule.part != HEAD:
                    continue
                match = _unless_hooked(root, match)
            if isinstance(match, Miss):
                wanted = getattr(config, rule.part)
                misses.append(dataclasses.replace(match, path=aliases.full(match.path), wanted=wanted))
                continue
            name = rule.name if isinstance(rule, Recorded) else type(rule).__name__
            full = dataclasses.replace(match, path=aliases.full(match.path))
            places.append((rule.part, name, full))
            found = _decide(rule.part, name, match, config, aliases, used)
            if isinstance(found, Site):
                sites.append(found)
            else:
                misses.append(found)
    misses += uncovered(model, {site.path for site in sites} | {miss.path for miss in misses})
    if strict:
        _check_overrides(config, used)
    unknown = () if rules else tuple(root.config.model_type for _, root in roots if not has_rules(root))
    found_all = Plan(
        type(model).__name__, config, tuple(sites), tuple(misses), unknown, tuple(describe(places))
    )
    if not sites:
        raise UnsupportedModelError(_nothing_found(found_all))
    return found_all


def with_defaults(config: QDQConfig | None) -> QDQConfig:
    """Fill what the configuration leaves open from the default descriptors set on `QuantLinear`.

    Raises:
        ConfigError: If it is no `QDQConfig`, or the defaults ask for what there is not.
    """
    config = QDQConfig() if config is None else config
    if not isinstance(config, QDQConfig):
        raise ConfigError(
            f"Expected a QDQConfig, not {config!r}. There are QDQConfig(...), QDQConfig.preset(name) and "
            "QDQConfig.from_dict(data)."
        )
    activation = config.activation or QuantizerConfig.from_descriptor(QuantLinear.default_quant_desc_input)
    weight = config.weight or QuantizerConfig.from_descriptor(QuantLinear.default_quant_desc_weight)
    return dataclasses.replace(config, activation=activation, weight=weight)


def _matches(model: nn.Module, rules: tuple[Rule, ...]) -> Iterator[tuple[Rule, Match | Miss]]:
    """Yield what the rules find; the first rule that finds an operation has it.

    A module whose products a rule knows, as one of the caller's own may, is reached.
    """
    claimed = set()
    reached = set()
    for rule in rules:
        for found in rule.match(model):
            if isinstance(found, Match) and rule.part == "matmuls":
                reached.add(found.path)
            if found.operation == MATRIX_PRODUCT and found.path in reached:
                continue
            if (found.path, found.operation) not in claimed:
                claimed.add((found.path, found.operation))
                yield rule, found


def _unless_hooked(root: nn.Module, match: Match) -> Match | Miss:
    """Refuse a module whose `forward` stands on the instance: a change of class would not reach it."""
    if "forward" not in vars(root.get_submodule(match.path)):
        return match
    reason = "its forward was replaced on the instance, as accelerate's hooks do; quantize before that"
    return Miss(match.path, match.operation, reason)


def _decide(
    part: str, rule: str, match: Match, config: QDQConfig, aliases: Aliases, used: set[str]
) -> Site | Miss:
    quantizers: dict[str, QuantizerConfig | None] = {}
    part_is_on = getattr(config, part)
    path = aliases.full(match.path)
    turned_off_by = None
    operands = dict(match.quantizers)
    if config.outputs and part == "linears" and match.becomes is QuantLinear:
        operands[OUTPUT] = "activation"
    for name, operand in operands.items():
        settings: QuantizerConfig = getattr(config, operand)
        enabled = part_is_on
        for override in config.overrides:
            if override.matches(aliases.of(f"{match.path}.{name}")):
                used.add(override.pattern)
                if operand == "weight" and not override.settings.get("symmetric", True):
                    raise ConfigError(
                        f"Weights lie around zero: the override {override.pattern!r} with symmetric=False "
                        f"matches {path}.{name}. Let its pattern match activations alone, such as "
                        "'*_input_quantizer'."
                    )
                settings = dataclasses.replace(settings, **override.settings)
                if override.enabled is not None:
                    enabled = override.enabled
                    turned_off_by = None if enabled else override.pattern
        if operand == "weight":
            settings.check_axis(WEIGHT_DIMS, f"{path}.{name}, which has two dimensions")
        quantizers[name] = settings if enabled else None
    if any(quantizers.values()):
        return Site(path, match.operation, rule, quantizers, match.becomes)
    if turned_off_by is not None:
        return Miss(path, match.operation, f"override {turned_off_by!r} turns it off")
    as_qdqbert = ", as in QDQBERT" if not getattr(QDQConfig(), part) else ""
    return Miss(path, match.operation, f"{part}=False in the configuration{as_qdqbert}")


def _check_overrides(config: QDQConfig, used: set[str]) -> None:
    for override in config.overrides:
        if override.pattern not in used:
            raise OverrideError(
                f"The override {override.pattern!r} matches no quantizer of the model. Patterns are globs "
                "over the paths that "
                f"{spelled('print(qdqpatch.plan(model))', '`qdqpatch inspect --ranges`')} lists."
            )


def _turned_off(found: Plan) -> bool:
    return any(miss.reason.startswith("override") for miss in found.misses)


def _nothing_found(found: Plan) -> str:
    on = [name for name in ("linears", "matmuls", "residual_adds") if getattr(found.config, name)]
    overrides = "the overrides turn off all of that" if _turned_off(found) else "no override turns more on"
    text = (
        f"Nothing in {found.model} would be quantized. Looked for the Linears, attention matmuls "
        f"and residual adds of its layers; the configuration turns on {', '.join(on) or 'none of them'}, "
        f"and {overrides}."
    )
    kinds = list(dict.fromkeys(miss.operation for miss in found.misses if miss.wanted))
    if found.unknown:
        text += f" There are no rules for the model type {', '.join(found.unknown)}"
        text += f", which computes with {', '.join(kinds[:SHOWN])}." if kinds else "."
        text += " Give rules of your own: qdqpatch.quantize(model, rules=[...])."
    elif kinds:
        reasons = list(dict.fromkeys(miss.reason for miss in found.misses if miss.wanted))
        text += f" All of that stays float: {'; '.join(reasons[:SHOWN])}."
    return text
