"""Numbers as options: what click's own types let pass and ranges do not."""

from __future__ import annotations

import math
from typing import Any

import click

LARGEST = 3.4e38
"""fp32's largest number, as it is written in the help; ranges are fp32."""


class Finite(click.types.FloatParamType):
    """A finite number: not NaN, and no infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the number, or fail as options do."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class Number(click.FloatRange, Finite):
    """A finite number in a range; NaN is neither below nor above any bound."""


POSITIVE = Number(0, min_open=True)
NOT_NEGATIVE = Number(0)
