"""Shapes as options: a batch and a length."""

from __future__ import annotations

from typing import Any

import click

from qdqpatch.engines.shapes import Shape
from qdqpatch.errors import ConfigError


class ShapeType(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click alone
    """A batch and a length, written as 8x128."""

    name = "shape"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Shape:
        """Read the shape, or fail as options do."""
        try:
            return value if isinstance(value, Shape) else Shape.parse(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


SHAPE = ShapeType()
