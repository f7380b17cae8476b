"""Look at a model and say what would be quantized, what not, and why. Changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from qdqpatch.config.config import WEIGHT_DIMS, QDQConfig
from qdqpatch.config.quantizer import QuantizerConfig
from qdqpatch.errors import ConfigError, OverrideError, UnsupportedModelError
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.patching.folding import Row, fold
from qdqpatch.patching.positions import check_positions
from qdqpatch.patching.recorded import HEAD, KEY, Recorded, describe, recorded_rules
from qdqpatch.patching.wrapped import refusal
from qdqpatch.rules import has_rules, rules_of
from qdqpatch.rules.base import Match, Miss, Rule
from qdqpatch.rules.structural import Unreached

SHOWN = 5
"""How many rows of what stays float a warning has."""


@dataclass(frozen=True)
class Site:
    """A place that gets quantizers.

    Attributes:
        path: The module's name in the model.
        operation: What is computed there.
        rule: Name of the rule that found it.
        quantizers: Name and settings of each quantizer; None for one that an override turned off.
        becomes: The class that the module gets.
    """

    path: str
    operation: str
    rule: str
    quantizers: Mapping[str, QuantizerConfig | None]
    becomes: type[nn.Module] = field(repr=False)

    def __str__(self) -> str:
        return ", ".join(f"{name}: {config or 'off'}" for name, config in self.quantizers.items())

    def brief(self) -> str:
        """Return the quantizers as `__str__` does, by the part of their names that tells them apart."""
        parts = []
        for name, config in self.quantizers.items():
            word = name.removesuffix("_quantizer").removesuffix("_input").strip("_") or "input"
            parts.append(f"{word} {config or 'off'}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Plan:
    """Every place of a model that gets quantizers, and every one that stays float with the reason.

    Attributes:
        model: Name of the model's class.
        config: The configuration that the plan follows, nothing in it left to defaults.
        sites: What is quantized, rule by rule.
        misses: What stays float.
        unknown: The model types for which there are no rules, here or of the caller's own, so that their
            structure decided.
        record: Every place that can be quantized, as data (`recorded.py`).
    """

    model: str
    config: QDQConfig
    sites: tuple[Site, ...]
    misses: tuple[Miss, ...]
    unknown: tuple[str, ...] = ()
    record: tuple[Mapping[str, Any], ...] = field(default=(), compare=False, repr=False)

    def site_rows(self) -> list[Row]:
        """Return path, operation and quantizers of the sites, equal ones of all layers in one row."""
        return fold([(site.path, site.operation, str(site)) for site in self.sites])

    def miss_rows(self) -> list[Row]:
        """Return path, operation and reason of what stays float, equal ones of all layers in one row."""
        return fold([(miss.path, miss.operation, miss.reason) for miss in self.misses])

    def shortfall(self) -> str:
        """Return what stays float though the configuration turns it on, in one line; empty if nothing."""
        rows = [f"{operation} of {path} ({reason})" for path, operation, reason in self.wanted_rows()]
        text = ""
        if self.unknown:
            text = (
                f"There are no rules for {', '.join(self.unknown)} made of these classes: what is quantized "
                f"in {self.model} was found by its structure. qdqpatch.audit(model, batch) lists what of its "
                "products and residual adds no quantizer feeds. "
            )
        if rows:
            more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
            text += (
                f"Of what the configuration turns on, this stays float in {self.model}: "
                f"{'; '.join(rows[:SHOWN])}{more}. "
            )
        return f"{text}print(qdqpatch.plan(model)) lists everything." if text else ""

    def wanted_rows(self) -> list[Row]:
        """Return `miss_rows` of what the configuration turns on."""
        wanted = [miss for miss in self.misses if miss.wanted]
        return fold([(miss.path or "the model itself", miss.operation, miss.reason) for miss in wanted])

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data."""
        sites = [
            {
                "path": site.path,
                "operation": site.operation,
                "rule": site.rule,
                "quantizers": {
                    name: None if config is None else dataclasses.asdict(config)
                    for name, config in site.quantizers.items()
                },
            }
            for site in self.sites
        ]
        names = ("path", "operation", "reason")
        misses = [{name: getattr(miss, name) for name in names} for miss in self.misses]
        return {"model": self.model, "config": self.config.to_dict(), "sites": sites, "misses": misses}

    def _repr_html_(self) -> str:
        """Return the plan as notebooks show it: two tables that can be folded."""
        quantized, floating = f"{len(self.sites)} operations quantized", f"{len(self.misses)} stay float"
        return (
            f"<p><b>{escape(self.model)}</b></p>"
            + _table(quantized, ("Module", "Operation", "Quantizers"), self.site_rows())
            + _table(floating, ("Module", "Operation", "Reason"), self.miss_rows())
        )

    def __str__(self) -> str:
        lines = [f"{self.model}: {len(self.sites)} operations quantized, {len(self.misses)} stay float"]
        for title, rows in (("Quantized", self.site_rows()), ("Float", self.miss_rows())):
            widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
            lines += ["", title] if rows else []
            for path, operation, detail in rows:
                lines.append(f"  {path:<{widths[0]}}  {operation:<{widths[1]}}  {detail}")
        return "\n".join(lines)


def _table(title: str, columns: tuple[str, ...], rows: list[Row]) -> str:
    """Return rows as a table of HTML; nothing for none."""
    if not rows:
        return ""
    head = "".join(f"<th style='text-align:left'>{escape(column)}</th>" for column in columns)
    lines = (
        "<tr>" + "".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return (
        f"<details open><summary>{escape(title)}</summary><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></details>"
    )


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
        ConfigError: If the configuration is no `QDQConfig`, or the model has relative positions that are
            not computed.
    """
    config = with_defaults(config)
    check_positions(model)
    used: set[str] = set()
    sites: list[Site] = []
    misses: list[Miss] = []
    places: list[tuple[str, str, Match]] = []
    roots = _known_models(model)
    record = () if rules else getattr(model.config, KEY, ())
    for root_path, root in roots:
        aliases = _Aliases(root_path, root)
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
    misses += _uncovered(model, {site.path for site in sites} | {miss.path for miss in misses})
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


class _Aliases:
    """The names that a quantizer goes by: with and without the prefix that a head puts before the base."""

    def __init__(self, root_path: str, root: PreTrainedModel) -> None:
        self.root = f"{root_path}." if root_path else ""
        self.prefix = f"{root.base_model_prefix}."
        self.is_base = root.base_model is root

    def full(self, path: str) -> str:
        return f"{self.root}{path}"

    def of(self, path: str) -> tuple[str, str]:
        other = self.prefix + path if self.is_base else path.removeprefix(self.prefix)
        return self.full(path), self.root + other


def _known_models(model: nn.Module) -> list[tuple[str, PreTrainedModel]]:
    """Return the outermost models that rules are for: the model itself, or the parts of a composite one."""
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(refusal(model))
    parts = [(path, module) for path, module in model.named_modules() if isinstance(module, PreTrainedModel)]
    known = _outermost([(path, module) for path, module in parts if has_rules(module)])
    between = {
        id(part) for _, part in parts if any(module is root for module in part.modules() for _, root in known)
    }
    # Of a composite model, the parts without rules too; not what only holds parts that have some.
    return _outermost(
        [(path, module) for path, module in parts if has_rules(module) or id(module) not in between]
    )


def _outermost(models: list[tuple[str, PreTrainedModel]]) -> list[tuple[str, PreTrainedModel]]:
    found: list[tuple[str, PreTrainedModel]] = []
    for path, module in models:
        if not any(not outer or path.startswith(f"{outer}.") for outer, _ in found):
            found.append((path, module))
    return found


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
            if isinstance(rule, Unreached) and found.path in reached:
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
    part: str, rule: str, match: Match, config: QDQConfig, aliases: _Aliases, used: set[str]
) -> Site | Miss:
    quantizers: dict[str, QuantizerConfig | None] = {}
    part_is_on = getattr(config, part)
    path = aliases.full(match.path)
    turned_off_by = None
    for name, operand in match.quantizers.items():
        settings: QuantizerConfig = getattr(config, operand)
        enabled = part_is_on
        for override in config.overrides:
            if override.matches(aliases.of(f"{match.path}.{name}")):
                used.add(override.pattern)
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


def _uncovered(model: nn.Module, covered: set[str]) -> list[Miss]:
    """Name the Linears that are no rule's business: those of a composite model between its parts."""
    return [
        Miss(path, "linear", "it is outside the parts that there are rules for")
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path not in covered
    ]


def _check_overrides(config: QDQConfig, used: set[str]) -> None:
    for override in config.overrides:
        if override.pattern not in used:
            raise OverrideError(
                f"The override {override.pattern!r} matches no quantizer of the model. Patterns are globs "
                "over the paths that `qdqpatch inspect` or print(qdqpatch.plan(model)) lists."
            )


def _nothing_found(found: Plan) -> str:
    on = [name for name in ("linears", "matmuls", "residual_adds") if getattr(found.config, name)]
    text = (
        f"Nothing in {found.model} would be quantized. Looked for the Linears, attention matmuls "
        f"and residual adds of its layers; the configuration turns on {', '.join(on) or 'none of them'}, "
        "and no override turns a quantizer on."
    )
    kinds = list(dict.fromkeys(miss.operation for miss in found.misses if miss.wanted))
    if found.unknown:
        text += f" There are no rules for the model type {', '.join(found.unknown)}"
        text += f", which computes with {', '.join(kinds[:SHOWN])}." if kinds else "."
        text += " Give rules of your own: qdqpatch.quantize(model, rules=[...])."
    return text
