"""Whether a file gives a text the same numbers alone and in a batch, padded or not, with any threads.

An engine that chooses ranges while it runs, as dynamic quantization does, takes them over the whole batch, so
that what a text gives depends on what it is beside. Ranges that are in the file cannot do that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qdqpatch.data.arrays import Array, Arrays
from qdqpatch.engines.sessions import Session, fixed_sizes

BATCH = 16

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What files can be given here."""

THREADS = min(4, max(2, os.cpu_count() or 2))
"""What is compared with a single thread."""

ROUNDING = 0.9999
"""A cosine as high as this is that of sums in another order, as with padding where an engine computes in bf16
(0.999996 on MiniLM); dynamic quantization was at 0.99."""


@dataclass(frozen=True)
class Exactness:
    """How alike outputs are, as the lowest cosine; 1.0 exactly where they are equal to the last bit.

    Attributes:
        batch: Of a text alone and in a batch of `BATCH`.
        padding: Of a text without padding and with it.
        threads: With one thread and with `THREADS`.
    """

    batch: float
    padding: float
    threads: float

    @property
    def holds(self) -> bool:
        """Whether nothing but rounding differs."""
        return min(self.batch, self.padding, self.threads) >= ROUNDING

    def __str__(self) -> str:
        """Return a line for tables and reports."""
        names = (f"batch {BATCH} = batch 1", "padded = not padded", f"{THREADS} threads = 1")
        values = (self.batch, self.padding, self.threads)
        return ", ".join(f"{name}: {_word(value)}" for name, value in zip(names, values, strict=True))


def _word(value: float) -> str:
    if value == 1.0:
        return "yes"
    return f"to rounding ({value:.6f})" if value >= ROUNDING else f"no (cosine {value:.4f})"


def exactness(
    load: Callable[[int], Session], rows: Sequence[Sequence[int]], padding: int = 0
) -> Exactness | None:
    """Run a file on the same tokens in several ways.

    Args:
        load: Loads it for a number of threads.
        rows: Token ids of some texts, special ones too, not all the same.
        padding: The id of padding.

    Returns:
        What was found; None for a graph that takes one shape alone.

    Raises:
        EngineError: If the engine fails, or the file takes something else than tokens.
    """
    session = load(1)
    if fixed_sizes(session.inputs) != (None, None):
        return None
    longest = max(map(len, rows))  # what the model is known to take
    length = min(min(map(len, rows)), max(longest // 2, 1))
    texts = [_turned([int(token) for token in rows[n % len(rows)][:length]], n) for n in range(BATCH)]
    alone = [_run(session, [text]) for text in texts]
    together, threaded = _run(session, texts), _run(load(THREADS), texts)
    padded = [_run(session, [text], longest - length, padding) for text in texts]
    return Exactness(
        _lowest(alone, [{name: value[[n]] for name, value in together.items()} for n in range(BATCH)]),
        _lowest(alone, padded),
        _lowest([together], [threaded]),
    )


def _turned(text: list[int], by: int) -> list[int]:
    """Return a text whose inner words begin elsewhere, so that no two of a few texts are alike."""
    first, inner, last = text[:1], text[1:-1], text[1:][-1:]
    place = by % len(inner) if inner else 0
    return [*first, *inner[place:], *inner[:place], *last]


def _run(session: Session, texts: list[list[int]], extra: int = 0, padding: int = 0) -> dict[str, Array]:
    ids = np.pad(np.array(texts), ((0, 0), (0, extra)), constant_values=padding)
    mask = np.pad(np.ones((len(texts), len(texts[0]))), ((0, 0), (0, extra)))
    given: Arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return session.run(
        {value.name: given[value.name].astype(value.dtype) for value in session.inputs if value.name in given}
    )


def _lowest(ones: list[dict[str, Array]], others: list[dict[str, Array]]) -> float:
    """Return the lowest cosine of any row of any output; 1.0 only where all are equal."""
    lowest = 1.0
    for one, other in zip(ones, others, strict=True):
        for name, value in one.items():
            found = other[name]
            if found.shape != value.shape:  # the outputs of padding
                found = found[:, : value.shape[1]]
            if not np.array_equal(value, found):
                lowest = min(lowest, *(_cosine(a, b) for a, b in zip(value, found, strict=True)))
    return lowest


def _cosine(one: Array, other: Array) -> float:
    a, b = (np.ravel(value).astype(np.float64) for value in (one, other))
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    # Below 1, which stands for equal to the last bit.
    return min(float(a @ b) / lengths, 1 - 1e-12) if lengths else 0.0
