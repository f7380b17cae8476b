"""Ranges that the searches find in what quantizers saw: of unusual activations, of FP8 and of 9 bits."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import scipy.stats
import torch
from numpy.typing import NDArray

from qdqpatch.calibration.histogram import Histogram
from qdqpatch.calibration.methods import bins_in_range
from qdqpatch.calibration.searches import entropy, mse
from qdqpatch.calibration.statistics import Statistics, TensorStatistics
from qdqpatch.choices import Method

Counts = NDArray[np.int64]

START = 128
"""The toolkit's `start_bin`: the narrowest range that entropy and mse try."""


class Eight:
    levels = 127


def ranges(values: torch.Tensor) -> dict[str, torch.Tensor]:
    statistics = TensorStatistics.of(Histogram.of(values), None, Eight())  # type: ignore[arg-type]
    return {name: statistics.best_range(name) for name in ("max", "percentile", "mse", "entropy")}


UNUSUAL: dict[str, Callable[[], torch.Tensor]] = {
    "constant": lambda: torch.full((1000,), -0.7),
    "power of two": lambda: torch.full((1000,), 2.0),
    "one value": lambda: torch.tensor([3.1]),
    "zeros and a constant": lambda: torch.tensor([0.0] * 10 + [1.3] * 990),
    "huge": lambda: torch.linspace(-1, 1, 1000) * 3.4e38,
    "tiny": lambda: torch.linspace(-1e-37, 1e-37, 1000),
    "subnormal": lambda: torch.linspace(0, 1e-40, 1000),
    "smallest": lambda: torch.tensor([1e-45] * 9),
    "fp16": lambda: torch.linspace(-65504, 65504, 1000).half(),
}


@pytest.mark.parametrize("make", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_activations_have_a_defined_range(make: Callable[[], torch.Tensor]) -> None:
    values = make()
    largest = values.float().abs().max()
    for method, amax in ranges(values).items():
        assert amax.dtype == torch.float32, method
        assert amax.dim() == 0, method
        # A constant is in one bin, the 2,049th or a higher one, whose lower edge the percentile gives. Of
        # evenly spread values entropy and mse clip a few.
        assert largest * (1 - 1 / 2048) * (0.9 if "linspace" in make.__code__.co_names else 1) <= amax, method
        assert amax <= largest, method


def test_a_tensor_of_zeros_has_the_range_zero() -> None:
    for method, amax in ranges(torch.zeros(50)).items():
        assert torch.equal(amax, torch.zeros(())), method


FP8 = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)


@pytest.mark.parametrize("method", ["mse", "entropy"])
@pytest.mark.parametrize("seed", range(3))
def test_of_the_ranges_tried_for_fp8_the_best_is_found(method: Method, seed: int) -> None:
    magnitudes = np.abs(np.random.default_rng(seed).standard_t(3, 5000))
    counts, _ = np.histogram(magnitudes, bins=700)
    found = bins_in_range(counts, 448, method, 0, is_float8=True)
    costs = {}
    for amax in np.unique(np.geomspace(START, 700, 256).round()):
        centers = np.arange(700) + 0.5
        steps = np.minimum(centers * (448 / amax), 448).astype(ml_dtypes.float8_e4m3fn)
        if method == "mse":
            costs[amax] = (counts * (steps.astype(np.float64) * (amax / 448) - centers) ** 2).sum()
            continue
        end = int(amax)
        reference = counts[:end].astype(np.float64)
        reference[0] = counts[1]
        quantized = np.zeros(end)
        for level in FP8:
            mine = (steps[:end].astype(np.float64) == level) & (reference > 0)
            quantized[mine] = reference[mine].mean() if mine.any() else 0
        reference[-1] += counts[end:].sum()
        costs[amax] = scipy.stats.entropy(reference, quantized)
    assert costs[found] == pytest.approx(min(costs.values()), rel=1e-9)


@pytest.mark.parametrize("method", ["mse", "entropy"])
def test_an_integer_that_has_as_many_levels_as_fp8_is_none(method: Method) -> None:
    """Of 9 bits with a zero point, 448 levels can lie on the longer side of the range."""
    counts, _ = np.histogram(np.abs(np.random.default_rng(0).standard_t(3, 5000)), bins=700)
    integer = TensorStatistics(
        counts, 2.0**-9, 700 * 2.0**-9, 255, ends=(-0.14 * 700 * 2.0**-9, 700 * 2.0**-9)
    )
    float8 = TensorStatistics(counts, 2.0**-9, 700 * 2.0**-9, 448)
    assert (integer.resolution, float8.resolution) == (448, 448)
    search = {"mse": mse.search, "entropy": entropy.search}[method]
    assert float(integer.best_range(method)) == search(counts, 448) * 2.0**-9
    # One search for what saw the same, but not for both of these.
    found = Statistics({"float8": float8, "integer": integer}).magnitudes(method)
    assert found["integer"] == integer.best_range(method) != found["float8"] == float8.best_range(method)
