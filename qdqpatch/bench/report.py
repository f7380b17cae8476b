"""What was measured: as data, as JSON, and as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qdqpatch.engines.exactness import Exactness
from qdqpatch.engines.loading import Skipped
from qdqpatch.engines.shapes import Shape
from qdqpatch.spelling import counted

COLUMNS = (
    "Model",
    "Engine",
    "Shape",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "Seq/s",
    "Speed",
    "Load s",
    "Size MB",
    "RAM MB",
)
NUMBERS = COLUMNS[3:]
"""The columns that are numbers."""


@dataclass(frozen=True)
class BenchmarkRow:
    """A contender at a shape.

    Attributes:
        model: What the table calls the model.
        engine: What it ran in.
        path: What the engine loaded.
        shape: Of the inputs.
        p50_ms: The median latency; None, as the next three, if the graph is not made for the shape.
        p90_ms: The latency that 9 of 10 runs stay within.
        sequences_per_s: Sequences in a second, one run after the other, at the median latency.
        speedup: How many times faster than the report's baseline, by the median; None also where the
            baseline was not run.
        load_s: From the files to a model that can run.
        size_mb: Of graph and weights on disk.
        memory_mb: The largest resident set of a process that loads and runs it, less what its imports
            take; None where the system does not tell.
        process_memory_mb: The same with the imports.
        note: What a reader has to know of the figures.
        p99_ms: The latency that 99 of 100 runs stay within; None if the graph is not made for the shape.
    """

    model: str
    engine: str
    path: str
    shape: Shape
    p50_ms: float | None
    p90_ms: float | None
    sequences_per_s: float | None
    speedup: float | None
    load_s: float
    size_mb: float
    memory_mb: float | None
    process_memory_mb: float | None
    note: str | None
    p99_ms: float | None = None

    @property
    def name(self) -> str:
        """Model and engine."""
        return f"{self.model} in {self.engine}"

    def to_dict(self) -> dict[str, Any]:
        """Return the row as data for JSON; the shape also as numbers."""
        data = dataclasses.asdict(self)
        shape = {"shape": str(self.shape), **data.pop("shape")}
        return {key: data.pop(key) for key in ("model", "engine", "path")} | shape | data


@dataclass(frozen=True)
class Benchmark:
    """Everything that was measured.

    Attributes:
        threads: That a run could use.
        rounds: Turns of each contender at each shape.
        versions: Of what ran the models.
        baseline: Model and engine that speed-ups are over.
        rows: By shape, then in the order of the models.
        skipped: What the engines could not load.
        shortened: Says that the default shapes were cut, and why; None if they were not.
        warmup: Rounds before those, which do not count.
        exactness: Of each exported file by model and engine: whether a text is the same alone and in a batch.
    """

    threads: int
    rounds: int
    versions: dict[str, str | None]
    baseline: str
    rows: tuple[BenchmarkRow, ...]
    skipped: tuple[Skipped, ...]
    shortened: str | None = None
    warmup: int = 1
    exactness: Mapping[str, Exactness] = field(default_factory=dict)

    @property
    def by_shape(self) -> dict[Shape, list[BenchmarkRow]]:
        """The rows of each shape."""
        groups: dict[Shape, list[BenchmarkRow]] = {}
        for row in self.rows:
            groups.setdefault(row.shape, []).append(row)
        return groups

    @property
    def notes(self) -> list[str]:
        """What the rows note, each once."""
        return list(dict.fromkeys(row.note for row in self.rows if row.note is not None))

    @property
    def conditions(self) -> str:
        """What all runs share."""
        return counted(self.threads, "thread")

    @property
    def numbered_notes(self) -> list[str]:
        """The notes, after the numbers that mark them."""
        return [f"({number}) {note}" for number, note in enumerate(self.notes, start=1)]

    def mark(self, row: BenchmarkRow) -> str:
        """Return the number of a row's note, as ` (1)`; nothing if it has none."""
        return "" if row.note is None else f" ({self.notes.index(row.note) + 1})"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as data for JSON."""
        return {
            "threads": self.threads,
            "rounds": self.rounds,
            "warmup": self.warmup,
            "versions": self.versions,
            "baseline": self.baseline,
            "shortened": self.shortened,
            "results": [row.to_dict() for row in self.rows],
            "skipped": [dataclasses.asdict(refusal) for refusal in self.skipped],
            "exactness": {name: dataclasses.asdict(found) for name, found in self.exactness.items()},
        }

    @property
    def title(self) -> str:
        """What the table is of."""
        return f"{self.conditions}, {counted(self.rounds, 'round')} in turns"

    def table(self) -> list[list[str]]:
        """Return the cells of a table of `COLUMNS`, by shape; notes are marked by their number."""
        return [
            [row.model, row.engine + self.mark(row), str(row.shape), *_figures(row)]
            for rows in self.by_shape.values()
            for row in rows
        ]

    def footnotes(self) -> list[str]:
        """Return the lines below the table."""
        speedup = f"Speed: over {self.baseline} at the same shape, by p50."
        exact = [f"{name}: {found}." for name, found in self.exactness.items()]
        return [*self.numbered_notes, speedup, *filter(None, [self.shortened]), *exact]


def _figures(row: BenchmarkRow) -> tuple[str, ...]:
    speedup = "-" if row.speedup is None else f"{row.speedup:.2f}x"
    return (
        rounded(row.p50_ms),
        rounded(row.p90_ms),
        rounded(row.p99_ms),
        rounded(row.sequences_per_s),
        speedup,
        f"{row.load_s:.2f}",
        f"{row.size_mb:.1f}",
        "-" if row.memory_mb is None else f"{row.memory_mb:.0f}",
    )


def rounded(value: float | None) -> str:
    """Write a number with at least 3 digits; `-` if it is not known."""
    if value is None:
        return "-"
    return f"{value:.{0 if value >= 1000 else 1 if value >= 10 else 2}f}"
