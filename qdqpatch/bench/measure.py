"""Timing in turns: whatever slows the machine down for a while slows all contenders."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

RUNS = 3
"""Timed runs in a turn."""

Key = TypeVar("Key")


@dataclass(frozen=True)
class Latency:
    """How long runs took, in seconds.

    Attributes:
        p50: The median.
        p90: What 9 of 10 runs stay within; between two runs, interpolated.
        p99: What 99 of 100 runs stay within, likewise.
    """

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Sum up the times of single runs."""
        return cls(*map(float, np.percentile(seconds, [50, 90, 99])))


def interleave(
    runs: Mapping[Key, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    after_round: Callable[[], None] = lambda: None,
    warmup: int = 1,
) -> dict[Key, list[float]]:
    """Time contenders in turns.

    A turn is one run that does not count, because another contender's has emptied the caches, and `RUNS`
    that do. Rounds to warm up come first and do not count: engines allocate and compile in their first runs.

    Args:
        runs: What runs each contender once.
        rounds: How many turns each has.
        clock: Returns the time in seconds.
        after_round: Called after each round, the first ones included.
        warmup: How many rounds come first.

    Returns:
        The times of `rounds * RUNS` runs of each.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in runs}
    for number in range(warmup + rounds):
        for key, run in runs.items():
            run()
            for _ in range(RUNS):
                start = clock()
                run()
                taken = clock() - start
                if number >= warmup:
                    seconds[key].append(taken)
        after_round()
    return seconds
