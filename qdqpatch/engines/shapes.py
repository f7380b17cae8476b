"""The shapes of what models are given: how many sequences at once, and how long."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from qdqpatch.errors import ConfigError

_TEXT = re.compile(r"([1-9]\d*)x([1-9]\d*)")


@dataclass(frozen=True)
class Shape:
    """A batch of sequences without padding.

    Attributes:
        batch: The number of sequences.
        length: The number of tokens of each.
    """

    batch: int
    length: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read a shape as `str` writes it.

        Raises:
            ConfigError: If the text is none.
        """
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ConfigError(f"{text!r} is no shape: write BATCHxLENGTH, such as 8x128.")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"

    @property
    def tokens(self) -> int:
        """The tokens of all sequences together."""
        return self.batch * self.length


DEFAULT_SHAPES = (Shape(1, 128), Shape(8, 128), Shape(1, 384))


def cut(shapes: Iterable[Shape], limit: int) -> tuple[Shape, ...]:
    """Return the shapes with no sequence longer than the limit, each once."""
    return tuple(dict.fromkeys(Shape(shape.batch, min(shape.length, limit)) for shape in shapes))
