"""Pairs of weights, against the instruction that multiplies them."""

import numpy as np
import pytest
import torch

from qdqpatch.data.arrays import Array
from qdqpatch.nn.pairs import LIMIT, pair_sums, pairs_fit


def saturating(inputs: Array, weight: Array) -> Array:
    """The product as vpmaddubsw adds it up: two and two in int16."""
    products = inputs[:, None, :].astype(int) * weight[None].astype(int)
    pairs = np.clip(products[..., 0::2] + products[..., 1::2], -(2**15), 2**15 - 1)
    return pairs.sum(-1)


def weights_with_sums(total: int) -> Array:
    """All pairs of int8 with a sum, and their negatives, one a row."""
    first = np.arange(max(total - 127, -127), min(total + 127, 127) + 1)
    rows = np.stack([first, total - first], 1)
    return np.concatenate([rows, -rows]).astype(np.int8)


@pytest.mark.parametrize(("total", "exact"), [(LIMIT, True), (LIMIT + 1, False), (0, True)])
def test_what_fits_is_exact_whatever_it_is_multiplied_by(total: int, exact: bool) -> None:
    weight = weights_with_sums(total)
    levels = np.array([0, 1, 127, 128, 254, 255], np.uint8)
    inputs = np.stack([axis.ravel() for axis in np.meshgrid(levels, levels)], 1)
    assert pairs_fit(weight) == exact
    assert (saturating(inputs, weight) == inputs.astype(int) @ weight.T.astype(int)).all() == exact


def test_an_odd_column_is_a_pair_of_its_own() -> None:
    weight = torch.tensor([[100.0, 28.0, -127.0], [-100.0, -29.0, 3.0]])
    assert pair_sums(weight).tolist() == [[128.0, 127.0], [129.0, 3.0]]
    for row, fits in zip(weight.numpy(), (True, False), strict=True):
        assert pairs_fit(row[None]) == fits
        assert pairs_fit(row[None].astype(np.int8)) == fits


def test_neighbours_alone_are_a_pair() -> None:
    assert pairs_fit(np.array([[1, 127, 127, 1]], np.int8))
    assert not pairs_fit(np.array([[127, 127, 1, 1]], np.int8))
    assert pairs_fit(np.zeros((3, 0), np.int8))
