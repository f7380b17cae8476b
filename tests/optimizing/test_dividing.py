"""Texts are divided into those to calibrate with, to choose by and to judge on."""

import pytest

from qdqpatch.errors import ConfigError
from qdqpatch.optimizing.dividing import divide


@pytest.mark.parametrize(
    ("count", "samples", "sizes"),
    [
        (30, 8, (10, 8, 8)),  # too few to choose by others than those to calibrate with
        (120, None, (40, 64, 16)),
        (90, 8, (30, 8, 52)),
        (1000, 256, (256, 256, 256)),
        (4, None, (1, 3, 3)),
    ],
)
def test_texts_are_divided(count: int, samples: int | None, sizes: tuple[int, ...]) -> None:
    found = divide(list(range(count)), None, samples, seed=0)
    assert (len(found.held), len(found.calibration), len(found.choosing)) == sizes
    assert not {*found.held} & {*found.calibration, *found.choosing}
    assert not {*found.calibration} & {*found.choosing} or found.choosing == found.calibration


def test_not_all_texts_can_be_held_back() -> None:
    with pytest.raises(ConfigError, match="30 cannot be held back"):
        divide(list(range(30)), 30, None, 0)
