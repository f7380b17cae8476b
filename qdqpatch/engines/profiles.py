"""What shapes a file with dynamic axes is compiled for by TensorRT, and which of its profiles takes one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qdqpatch.engines.shapes import Shape
from qdqpatch.errors import EngineError

SMALLEST, USUAL, LARGEST = Shape(1, 1), Shape(8, 128), Shape(32, 512)
"""The shapes of a profile, where the model's positions go as far."""


@dataclass(frozen=True)
class Profile:
    """A range of shapes.

    Attributes:
        smallest: The least batch and the least length.
        usual: What kernels are chosen for.
        largest: The greatest batch and the greatest length, which go together.
    """

    smallest: Shape
    usual: Shape
    largest: Shape

    def takes(self, shape: Shape) -> bool:
        """Whether a shape is in its range."""
        return all(
            least <= size <= most
            for least, size, most in (
                (self.smallest.batch, shape.batch, self.largest.batch),
                (self.smallest.length, shape.length, self.largest.length),
            )
        )


def profiles_for(longest: int | None) -> tuple[Profile, ...]:
    """Return the profiles of a model: usual batches, and where it takes longer sequences, few of those.

    The memory of an engine is that of its largest shape, so no profile has more tokens than the first, unless
    one sequence alone has.

    Args:
        longest: The longest sequence that the model takes; None where that is not known.
    """
    longest = LARGEST.length if longest is None else longest
    length = min(longest, LARGEST.length)
    usual = Profile(SMALLEST, Shape(USUAL.batch, min(USUAL.length, length)), Shape(LARGEST.batch, length))
    if longest == length:
        return (usual,)
    batch = max(1, LARGEST.tokens // longest)
    return usual, Profile(SMALLEST, Shape(1, longest), Shape(batch, longest))


def profile_of(profiles: Sequence[Profile], shape: Shape) -> int:
    """Return the number of the first profile that takes a shape.

    Raises:
        EngineError: If none does.
    """
    for number, profile in enumerate(profiles):
        if profile.takes(shape):
            return number
    most = " or ".join(str(profile.largest) for profile in profiles)
    raise EngineError(f"{shape} is more than the file was compiled for, at most {most}")
