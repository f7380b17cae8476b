"""Texts by what they are for: to calibrate with, to choose by, and to judge on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qdqpatch.errors import CalibrationError, ConfigError
from qdqpatch.spelling import counted
from qdqpatch.tasks.base import draw

HELD_BACK = 256
"""At most so many texts are held back to judge on, and at most a third of what there is; and at most as many
to choose by."""

LEAST = 4
"""Fewer texts than this cannot be divided into those to calibrate with and those to judge on."""

SHARE = 5
"""One in so many of the texts that are not held back is one to choose by, where none are left over."""

ENOUGH = 16
"""Fewer texts than this are none to choose by."""


@dataclass(frozen=True)
class Divided:
    """The examples, by what they are for.

    Attributes:
        held: To judge on: nothing else sees them.
        calibration: To calibrate with, and to train on.
        choosing: To choose by which units stay float: others, or of few texts those to calibrate with.
    """

    held: Sequence[Any]
    calibration: Sequence[Any]
    choosing: Sequence[Any]


def divide(examples: Sequence[Any], held_back: int | None, samples: int | None, seed: int) -> Divided:
    """Divide examples.

    Args:
        examples: All of them.
        held_back: How many to judge on; None for a third, and at most `HELD_BACK`.
        samples: How many to calibrate with at most; None for all others.
        seed: Another one draws others.

    Raises:
        CalibrationError: If there are too few.
        ConfigError: If nothing would be left to calibrate with.
    """
    if len(examples) < LEAST:
        raise CalibrationError(
            f"{counted(len(examples), 'text')} cannot be divided into some to calibrate with and some to "
            f"judge on: give at least {LEAST}, better some hundred."
        )
    count = min(HELD_BACK, len(examples) // 3) if held_back is None else held_back
    if not 0 < count < len(examples):
        raise ConfigError(f"Of {counted(len(examples), 'text')} {count} cannot be held back.")
    held, others = _split(examples, count, seed)
    count = len(others) if samples is None else min(samples, len(others))
    if (share := len(others) // SHARE) >= ENOUGH:
        count = min(count, len(others) - share)
    calibration, left = _split(others, count, seed)
    return Divided(held, calibration, draw(left, HELD_BACK, seed) if len(left) >= ENOUGH else calibration)


def _split(examples: Sequence[Any], count: int, seed: int) -> tuple[list[Any], list[Any]]:
    """Return so many examples, drawn at random, and the others; both in their order."""
    places = draw(range(len(examples)), count, seed)
    drawn = set(places)
    others = [example for place, example in enumerate(examples) if place not in drawn]
    return [examples[place] for place in places], others
