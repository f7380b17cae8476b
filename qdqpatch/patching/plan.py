"""What a look at a model found: what would be quantized, what not, and why; as data, as text and as HTML."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from torch import nn

from qdqpatch.config.config import QDQConfig
from qdqpatch.config.quantizer import QuantizerConfig
from qdqpatch.patching.folding import Row, fold
from qdqpatch.rules.base import Miss
from qdqpatch.rules.rewriting import portable, rewritten
from qdqpatch.spelling import counted, spelled

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

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "becomes": portable(self.becomes)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        float_class, changes = state["becomes"]
        vars(self).update(state, becomes=rewritten(float_class, changes) if changes else float_class)

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
        return _folded(self.misses)

    def notice(self) -> str:
        """Return that there are no rules for a part of the model, in one line; empty if there are."""
        if not self.unknown:
            return ""
        return (
            f"There are no rules for {', '.join(self.unknown)} made of these classes: what is quantized "
            f"in {self.model} was found by its structure. "
            f"{spelled('qdqpatch.audit(model, batch)', '`qdqpatch inspect --audit`')} lists what of its "
            "products and residual adds no quantizer feeds. "
        )

    def shortfall(self) -> str:
        """Return what stays float though the configuration turns it on, in one line; empty if nothing."""
        rows = [f"{operation} of {path} ({reason})" for path, operation, reason in self.wanted_rows()]
        text = self.notice()
        if rows:
            more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
            text += (
                f"Of what the configuration turns on, this stays float in {self.model}: "
                f"{'; '.join(rows[:SHOWN])}{more}. "
            )
        if text:
            text += f"{spelled('print(qdqpatch.plan(model))', '`qdqpatch inspect`')} lists everything."
        return text

    def wanted_rows(self) -> list[Row]:
        """Return `miss_rows` of what the configuration turns on."""
        return _folded([miss for miss in self.misses if miss.wanted])

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

    def counts(self) -> tuple[str, str]:
        """Return in words how many operations are quantized, and how many stay float."""
        return (
            counted(len(self.sites), "operation quantized", "operations quantized"),
            counted(len(self.misses), "stays float", "stay float"),
        )

    def _repr_html_(self) -> str:
        """Return the plan as notebooks show it: two tables that can be folded."""
        quantized, floating = self.counts()
        return (
            f"<p><b>{escape(self.model)}</b></p>"
            + _table(quantized, ("Module", "Operation", "Quantizers"), self.site_rows())
            + _table(floating, ("Module", "Operation", "Reason"), self.miss_rows())
        )

    def __repr__(self) -> str:
        lines = [f"{self.model}: {', '.join(self.counts())}"]
        for title, rows in (("Quantized", self.site_rows()), ("Float", self.miss_rows())):
            widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
            lines += ["", title] if rows else []
            for path, operation, detail in rows:
                lines.append(f"  {path:<{widths[0]}}  {operation:<{widths[1]}}  {detail}")
        return "\n".join(lines)


def _folded(misses: Sequence[Miss]) -> list[Row]:
    return fold([(miss.path or "the model itself", miss.operation, miss.reason) for miss in misses])


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
