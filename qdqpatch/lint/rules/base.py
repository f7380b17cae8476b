"""What a rule is: data about an engine, and a look at one operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from qdqpatch.lint.sites import Operation, Site

Effect = Literal["stays float", "slower", "refused"]
"""What the engine does where a rule is broken."""


@dataclass(frozen=True)
class Document:
    """Where a rule is written down.

    Attributes:
        title: The page's own.
        url: Its address.
    """

    title: str
    url: str


@dataclass(frozen=True)
class LintRule:
    """A rule of an engine.

    Attributes:
        name: What it is called in tables and in JSON.
        effect: What the engine does where it is broken.
        operations: The kinds of operation that it is about.
        reason: Why the engine does so.
        fix: What to change in the graph.
        documents: Where it is written down.
        check: Returns what breaks it at an operation; None where it is kept.
        concerns: Says of all operations of a file whether the rule is about such a file; None if about any.
    """

    name: str
    effect: Effect
    operations: tuple[Operation, ...]
    reason: str
    fix: str
    documents: tuple[Document, ...]
    check: Callable[[Site], str | None]
    concerns: Callable[[Sequence[Site]], bool] | None = None
