"""Numbers as options: what click's own types let pass and ranges do not."""

from __future__ import annotations

import math
from typing import Any

import click

LARGEST = (2 - 2.0**-23) * 2.0**127
"""fp32's largest number; ranges are fp32."""


class PositiveFloat(click.FloatRange):
    """A positive number that fp32 holds; not NaN, which is neither below nor above any bound."""

    def __init__(self) -> None:
        super().__init__(0, LARGEST, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the number, or fail as options do."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number
