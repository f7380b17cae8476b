"""Where a model was quantized, as data that goes with its checkpoint.

A checkpoint's placement does not depend on the rules that found it: a release that finds more places, or a
rule of the user's own that nobody gives when the model is loaded, moves nothing. The task head is left to the
rules, for a checkpoint may be loaded with another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from torch import nn

from qdqpatch.config.patterns import matches
from qdqpatch.nn.linear import QuantEmbedding, QuantLinear
from qdqpatch.patching.folding import fold
from qdqpatch.rules.base import Match, Miss
from qdqpatch.rules.linears import not_plain
from qdqpatch.rules.rewriting import GUARD, Change, Wrap, rewritten
from qdqpatch.rules.source import SourceError

KEY = "qdqpatch_sites"
"""What the record is called in a model's `config.json`."""

HEAD = "head"
PLAIN: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: QuantLinear, nn.Embedding: QuantEmbedding}

Row = Mapping[str, Any]


def describe(found: Sequence[tuple[str, str, Match]]) -> list[dict[str, Any]]:
    """Return as JSON-ready data where a model can be quantized.

    Args:
        found: For each place the part of the configuration that turns it on, the name of the rule, and
            the match. Classes that a rule made itself cannot be recorded, and are left out.
    """
    rows = []
    for part, rule, match in found:
        changes = getattr(match.becomes, "changes", None)
        if part == HEAD or (changes is None and match.becomes not in PLAIN.values()):
            continue
        row = {
            "part": part,
            "rule": rule,
            "operation": match.operation,
            "quantizers": [list(item) for item in match.quantizers.items()],  # a file sorts its keys
            "changes": [_data(change) for change in changes or ()],
        }
        rows.append((match.path, json.dumps(row), ""))
    return [{"path": path, **json.loads(row)} for path, row, _ in fold(rows)]


@dataclass(frozen=True)
class Recorded:
    """The places of a record that one rule found.

    Attributes:
        part: The field of `QDQConfig` that turns them on.
        name: The rule's name.
        rows: The record's rows.
        names: Returns what a module's path may be called in the record.
    """

    part: str
    name: str
    rows: tuple[Row, ...]
    names: Callable[[str], tuple[str, ...]] = field(repr=False)

    def match(self, model: nn.Module) -> Iterator[Match | Miss]:
        """Yield a match for each place that the model has, or a miss if it can no longer be rewritten."""
        for path, module in model.named_modules():
            names = self.names(path)
            for row in self.rows:
                if any(matches(row["path"], name) for name in names):
                    yield self._at(path, module, row)

    def _at(self, path: str, module: nn.Module, row: Row) -> Match | Miss:
        changes = [_change(change) for change in row["changes"]]
        try:
            becomes = rewritten(type(module), changes) if changes else PLAIN.get(type(module))
        except SourceError as error:
            return Miss(path, row["operation"], str(error))
        if becomes is None:
            return Miss(path, row["operation"], not_plain(module, nn.Linear))
        return Match(path, row["operation"], dict(row["quantizers"]), becomes)


def recorded_rules(rows: Sequence[Row], names: Callable[[str], tuple[str, ...]]) -> tuple[Recorded, ...]:
    """Return the rules that find again what a record says, in its order."""
    return tuple(
        Recorded(part, rule, tuple(group), names)
        for (part, rule), group in groupby(rows, key=lambda row: (row["part"], row["rule"]))
    )


def _data(change: Change) -> list[Any]:
    if isinstance(change, Wrap):
        return [change.method, change.kind, change.number, list(change.quantizers)]
    return [change]


def _change(data: Sequence[Any]) -> Change:
    if list(data) == [GUARD]:
        return GUARD
    method, kind, number, (first, second) = data
    return Wrap(method, kind, number, (first, second))
