"""What each rung of the ladder gave and cost, and what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from qdqpatch.optimizing.budget import Judged

FLOAT = "float"
"""The name of the rung that the ladder stands on: the float model."""


@dataclass(frozen=True)
class RungResult:
    """What became of a rung.

    Attributes:
        name: The rung's.
        seconds: What it took, with exporting and judging.
        judged: How far its model is from the budget; None if it was not climbed. The float model's says what
            the others are compared with.
        speedup: How many times faster than the float model in the same engine; None if that is not known.
        latency_ms: The median latency.
        note: Why it was not climbed, or what else there is to know.
    """

    name: str
    seconds: float
    judged: Judged | None = None
    speedup: float | None = None
    latency_ms: float | None = None
    note: str = ""

    @property
    def within_budget(self) -> bool | None:
        """Whether its model meets the budget; None for the float one, and where nothing was climbed."""
        return None if self.judged is None or self.name == FLOAT else self.judged.passes

    def to_dict(self) -> dict[str, Any]:
        """Return the rung as data for JSON."""
        judged = self.judged
        return {
            "name": self.name,
            "seconds": round(self.seconds, 1),
            "figures": {} if judged is None else {name: one.value for name, one in judged.figures.items()},
            "within_budget": self.within_budget,
            "speedup": self.speedup,
            "latency_ms": self.latency_ms,
            "note": self.note,
        }


@dataclass(frozen=True)
class Optimization:
    """What `optimize` found.

    Attributes:
        model: The model that was given, now the best one that was found.
        target: The engine that it is for.
        engine: What it was judged in, with its version.
        placement: The preset that says what is quantized, and which ranges have a zero point; or `given`.
        asked: The budget, in words.
        rungs: Every rung, the float model first.
        chosen: The name of the rung that the model is of.
        met: Whether the budget is met.
        settings: Arguments of `ptq` that the model was made with.
        held_back: How many texts it was judged on.
        calibrated: How many it was calibrated with.
        warnings: What else a reader has to know.
    """

    model: nn.Module
    target: str
    engine: str
    placement: str
    asked: str
    rungs: tuple[RungResult, ...]
    chosen: str
    met: bool
    settings: dict[str, Any]
    held_back: int
    calibrated: int
    warnings: tuple[str, ...] = ()

    @property
    def best(self) -> RungResult:
        """The rung that the model is of."""
        return next(rung for rung in self.rungs if rung.name == self.chosen)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the model as data for JSON."""
        return {
            "target": self.target,
            "engine": self.engine,
            "placement": self.placement,
            "asked": self.asked,
            "met": self.met,
            "chosen": self.chosen,
            "settings": self.settings,
            "calibrated": self.calibrated,
            "held_back": self.held_back,
            "rungs": [rung.to_dict() for rung in self.rungs],
            "warnings": list(self.warnings),
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the names of the columns, and a row of cells for each rung."""
        return table_of(self.rungs, self.chosen)

    def conclusion(self) -> str:
        """Say in a sentence what came of it."""
        if self.met:
            return f"{self.asked} is met by: {self.chosen} ({self.placement})."
        lacking = self.best.judged
        reached = ", ".join(f"{name} {one}" for name, one in lacking.figures.items()) if lacking else ""
        return f"Nothing meets {self.asked}. Nearest: {self.chosen} ({self.placement}), {reached}."

    def __repr__(self) -> str:
        """Return the table and the conclusion."""
        columns, rows = self.table()
        widths = [max(len(row[place]) for row in (columns, *rows)) for place in range(len(columns))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (columns, *rows)
        ]
        return "\n".join([*lines, self.conclusion(), *self.warnings])


def table_of(rungs: Sequence[RungResult], chosen: str) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns, and a row of cells for each rung; of time only if one was timed."""
    names = list(dict.fromkeys(name for rung in rungs if rung.judged for name in rung.judged.figures))
    timed = any(rung.latency_ms is not None for rung in rungs)
    columns = ["Rung", "Seconds", *names, *(("ms", "Speed") if timed else ()), "Budget", ""]
    rows = []
    for rung in rungs:
        figures = {} if rung.judged is None else rung.judged.figures
        speed = (
            "-" if rung.latency_ms is None else f"{rung.latency_ms:.2f}",
            "-" if rung.speedup is None else f"{rung.speedup:.2f}x",
        )
        met = "" if rung.within_budget is None else "met" if rung.within_budget else "missed"
        rows.append(
            [
                rung.name,
                f"{rung.seconds:.1f}",
                *(str(figures[name]) if name in figures else "-" for name in names),
                *(speed if timed else ()),
                met,
                "; ".join(filter(None, ["chosen" if rung.name == chosen else "", rung.note])),
            ]
        )
    return columns, rows
