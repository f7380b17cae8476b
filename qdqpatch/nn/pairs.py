"""Pairs of weights that the faster kernel of x86 without VNNI multiplies exactly.

AVX2's vpmaddubsw multiplies two neighbouring uint8 by two int8 and adds both products in int16, which
saturates: 255 * 127 twice is more than it holds. Two weights whose levels add up to 128 at most are safe,
whatever they are multiplied by: 255 * 128 = 32,640. Halving the levels of all weights is the usual way there
(`reduce_range` of ONNX Runtime, the overflow fix of NNCF), and loses a bit; but few of the largest weights
are neighbours, so that ranges some 20% wider do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

LIMIT = 128
"""What the levels of a pair may add up to, on either side of zero."""


def pair_sums(weight: Tensor) -> Tensor:
    """Return the magnitude of the sum of neighbouring inputs' weights, two and two.

    Args:
        weight: Shape `(out_features, in_features)`.

    Returns:
        Shape `(out_features, ceil(in_features / 2))`. Where a pair's signs differ, its sum is no larger than
        either weight.
    """
    padded: Tensor = nn.functional.pad(weight, (0, weight.shape[-1] % 2))
    sums: Tensor = padded.unflatten(-1, (-1, 2)).sum(-1).abs()
    return sums


def pairs_fit(levels: npt.NDArray[Any]) -> bool:
    """Return whether no product of uint8 with these weights saturates.

    Args:
        levels: Whole numbers of int8, of any dtype, shape `(out_features, in_features)`.
    """
    first, second = (levels[..., start::2].astype(np.int16) for start in (0, 1))
    first[..., : second.shape[-1]] += second
    return int(np.abs(first).max(initial=0)) <= LIMIT
