"""Draws without replacement, each item as likely as any other; the same ones for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def reservoir(items: Iterable[Item], samples: int | None, seed: int) -> tuple[list[Item], int]:
    """Draw from items that come one after the other, and keep only as many as are drawn.

    This is algorithm R of Vitter, "Random sampling with a reservoir", 1985.

    Args:
        items: The items, all of which are read.
        samples: How many to draw; None, or more than there are, for all.
        seed: What the draw depends on.

    Returns:
        Those drawn, in their order, and how many there were.
    """
    generator = random.Random(seed)
    kept: list[tuple[int, Item]] = []
    count = 0
    for item in items:
        if samples is None or count < samples:
            kept.append((count, item))
        elif (place := generator.randrange(count + 1)) < samples:
            kept[place] = (count, item)
        count += 1
    return [item for _, item in sorted(kept, key=lambda pair: pair[0])], count


def random_order(count: int, seed: int) -> Iterator[int]:
    """Yield the numbers below `count` in a random order, in memory for as many as are taken."""
    generator = random.Random(seed)
    moved: dict[int, int] = {}  # Fisher and Yates' shuffle; a number that is not here is in its own place
    for place in range(count):
        other = generator.randrange(place, count)
        yield moved.get(other, other)
        moved[other] = moved.pop(place, place)
