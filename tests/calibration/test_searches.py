"""The searches find the toolkit's bin, and a defined range where the toolkit finds none."""

import copy
from typing import Any

import models
import numpy as np
import nvidia
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pytorch_quantization import nn as quant_nn
from pytorch_quantization.calib.histogram import _compute_amax_entropy, _compute_amax_percentile
from pytorch_quantization.tensor_quant import QuantDescriptor

from qdqpatch import calibrate, quantize
from qdqpatch.calibration import collect
from qdqpatch.calibration.methods import bins_in_range
from qdqpatch.patching.apply import named_quantizers

Counts = NDArray[np.int64]

START = 128
"""The toolkit's `start_bin`: the narrowest range that entropy and mse try."""

slowly = settings(derandomize=True, max_examples=40)
quickly = settings(derandomize=True, max_examples=200)


def levels_of(bits: int, unsigned: bool) -> int:
    return 2 ** (bits - 1 + unsigned) - 1


def toolkits_percentile(counts: Counts, percentile: float) -> float:
    # Edges 0, 1, 2, ... make the toolkit's amax a number of bins.
    return float(_compute_amax_percentile(counts.copy(), np.arange(len(counts) + 1), percentile))


def toolkits_entropy(counts: Counts, bits: int, unsigned: bool) -> float:
    # A copy, because the toolkit overwrites the first count.
    with np.errstate(all="ignore"):
        return float(_compute_amax_entropy(counts.copy(), np.arange(len(counts) + 1), bits, unsigned))


def entropy_by_definition(counts: Counts, levels: int) -> float:
    """The toolkit's search with its loops over bins written as array operations, for longer histograms."""
    bins = counts.copy()
    bins[0] = bins[1]
    best, smallest = 0, np.inf
    for end in range(START, len(bins) + 1):
        level = np.digitize(np.arange(end), np.linspace(0, end, levels + 2)) - 1
        p, filled = bins[:end].astype(float), bins[:end] != 0
        sums = np.bincount(level, p, levels + 1)[level]
        q = np.where(filled, sums / np.maximum(np.bincount(level, filled, levels + 1)[level], 1), 0)
        p[-1] += bins[end:].sum()
        if q.sum() == 0 or (p[q == 0] > 0).any():
            continue
        p, q = p[filled] / p.sum(), q[filled] / q.sum()
        divergence = float((p * np.log(p / q)).sum())
        if divergence <= smallest + 1e-15:
            best, smallest = end, min(divergence, smallest)
    return float(best)


def mse_by_formula(counts: Counts, levels: int) -> NDArray[np.float64]:
    """The errors of `_compute_amax_mse`, which itself needs CUDA, in float64, one range after the other."""
    centers = np.arange(len(counts)) + 0.5
    errors = []
    for amax in centers[START:]:
        quantized = np.clip(np.round(centers * (levels / amax)), -levels, levels) / (levels / amax)
        errors.append(((quantized - centers) ** 2 * counts).mean())
    return np.array(errors)


@st.composite
def histograms(draw: Any, shortest: int = 130, longest: int = 400) -> Counts:
    """Counts of many shapes whose last is not 0, and whose first bins hold data."""
    size = draw(st.integers(shortest, longest))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([3, 1_000, 10**6, 10**9]))
    place = np.arange(size) / size
    shape = draw(st.sampled_from(["flat", "normal", "heavy tail", "spike", "two humps", "few"]))
    density = {
        "flat": np.ones(size),
        "normal": np.exp(-((place * draw(st.integers(1, 6))) ** 2)),
        "heavy tail": 1 / (1 + 50 * place) ** draw(st.integers(1, 4)),
        "spike": np.full(size, 1e-3),
        "two humps": np.exp(-((place * 9) ** 2)) + np.exp(-(((place - 0.8) * 15) ** 2)) / 50,
        "few": rng.random(size) ** 8,
    }[shape]
    if shape == "spike":
        density[rng.integers(1, size)] = 1
    counts = rng.poisson(scale * density)
    counts[rng.random(size) < draw(st.sampled_from([0, 0, 0.3, 0.9]))] = 0
    counts[0] *= draw(st.sampled_from([0, 1, 1_000]))
    counts[1] = max(counts[1], 1)  # else the toolkit's divergences may be NaN
    counts[-1] = max(counts[-1], 1)
    return counts


@quickly
@given(histograms(2, 400), st.floats(0.001, 100))
def test_percentile_finds_the_toolkits_bin(counts: Counts, percentile: float) -> None:
    assert bins_in_range(counts, 127, "percentile", percentile) == toolkits_percentile(counts, percentile)


@quickly
@given(histograms(2, 400), st.sampled_from([50.0, 99.0, 99.9, 99.99, 99.999, 100.0]))
def test_usual_percentiles_find_the_toolkits_bin(counts: Counts, percentile: float) -> None:
    assert bins_in_range(counts, 127, "percentile", percentile) == toolkits_percentile(counts, percentile)


@slowly
@given(histograms(), st.integers(3, 8), st.booleans())
def test_entropy_finds_the_toolkits_bin(counts: Counts, bits: int, unsigned: bool) -> None:
    expected = toolkits_entropy(counts, bits, unsigned)
    assert bins_in_range(counts, levels_of(bits, unsigned), "entropy", 0) == expected


@quickly
@given(histograms(), st.integers(2, 8), st.booleans())
def test_entropy_is_right_by_its_definition(counts: Counts, bits: int, unsigned: bool) -> None:
    levels = levels_of(bits, unsigned)
    assert bins_in_range(counts, levels, "entropy", 0) == entropy_by_definition(counts, levels)


@pytest.mark.parametrize("seed", range(2))
def test_entropy_of_long_histograms_is_right_by_its_definition(seed: int) -> None:
    magnitudes = np.abs(np.random.default_rng(seed).standard_t(3, 30_000))
    counts, _ = np.histogram(magnitudes, bins=1500)
    assert bins_in_range(counts, 127, "entropy", 0) == entropy_by_definition(counts, 127) < 1500


@quickly
@given(histograms(), st.integers(2, 8), st.booleans())
def test_mse_finds_the_bin_of_the_toolkits_formula(counts: Counts, bits: int, unsigned: bool) -> None:
    levels = levels_of(bits, unsigned)
    errors = mse_by_formula(counts, levels)
    found = bins_in_range(counts, levels, "mse", 0) - 0.5
    # Two ranges may be equally good, and then the last bit of the sums decides: relative 1e-12 of float64.
    assert errors[int(found) - START] <= errors.min() * (1 + 1e-12)
    if (errors <= errors.min() * (1 + 1e-12)).sum() == 1:
        assert found == START + np.argmin(errors)


def test_mse_with_many_levels_takes_another_way_to_the_same_bin() -> None:
    counts = np.random.default_rng(3).poisson(1_000 * np.exp(-np.linspace(0, 9, 300)))
    counts[-1] += 1
    for levels in (1023, 2047, 32767):
        errors = mse_by_formula(counts, levels)
        assert errors[int(bins_in_range(counts, levels, "mse", 0)) - START] <= errors.min() * (1 + 1e-12)


@pytest.mark.parametrize("levels", [1, 7, 127, 255])
def test_four_bits_clip_more_than_eight(levels: int) -> None:
    counts = (1e6 * np.exp(-np.linspace(0, 14, 2000))).astype(np.int64) + 1
    wider = bins_in_range(counts, 2 * levels + 1, "mse", 0)
    assert bins_in_range(counts, levels, "mse", 0) < wider


# Against the toolkit, on a model.


@pytest.mark.parametrize("name", ["BertModel", models.CROSS])
def test_searches_find_the_toolkits_bins_in_what_a_model_showed(name: str) -> None:
    """Entropy in bins 16 times as wide: the toolkit's own loops take a minute for 4,096 bins."""
    seen = set()
    for path, tensor in collect(models.uncalibrated(name), nvidia.batches(name), padding_aware=False).items():
        counts = tensor.counts[: np.flatnonzero(tensor.counts)[-1] + 1]
        if counts.tobytes() in seen:
            continue
        seen.add(counts.tobytes())
        for percentile in (99.0, 99.9, 99.99):
            expected = toolkits_percentile(counts, percentile)
            assert bins_in_range(counts, tensor.levels, "percentile", percentile) == expected, path
        wide = np.bincount(np.arange(len(counts)) // 16, weights=counts).astype(np.int64)
        expected = toolkits_entropy(wide, 8, False)
        assert bins_in_range(wide, tensor.levels, "entropy", 0) == expected, path
        errors = mse_by_formula(wide, 127)
        found = int(bins_in_range(wide, tensor.levels, "mse", 0)) - START
        assert errors[found] <= errors.min() * (1 + 1e-12), path  # see test_py


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentiles_are_within_a_bin_of_nvidias_flow(percentile: float) -> None:
    """Both give the lower edge of the bin of the same value, each in bins of its own width."""
    quant_nn.QuantLinear.set_default_quant_desc_input(QuantDescriptor(calib_method="histogram"))
    theirs = quantize(models.float_model())
    ours, data = copy.deepcopy(theirs), nvidia.batches()
    nvidia.collect_as_nvidia_does(theirs, data)
    nvidia.compute_as_nvidia_does(theirs, method="percentile", percentile=percentile)
    statistics = collect(ours, data, padding_aware=False)
    found = models.ranges(calibrate(ours, statistics, percentile=percentile))
    quantizers = dict(named_quantizers(theirs))
    for path, tensor in statistics.items():
        edges = quantizers[path]._calibrator._calib_bin_edges
        width = max(tensor.width, float(edges[1] - edges[0]))
        assert (found[path] - quantizers[path].amax).abs() < width * 1.001, path  # their edges are rounded


# Where the toolkit is wrong, be right.


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_the_callers_histogram_is_left_alone(method: Any) -> None:
    """The toolkit overwrites the first count with the second, so its next search sees another histogram."""
    counts = np.arange(200, 0, -1)
    before = counts.copy()
    toolkits_entropy(before, 8, False)
    _compute_amax_entropy(before, np.arange(201), 8, False)
    assert before[0] != counts[0]
    bins_in_range(counts, 127, method, 99)
    assert (counts == np.arange(200, 0, -1)).all()


@pytest.mark.parametrize("empty", [128, 140, 199])
def test_entropy_never_chooses_a_range_without_data(empty: int) -> None:
    """Where its first ranges hold no data the toolkit's divergence is NaN, which argmin takes for least."""
    counts = np.zeros(300, np.int64)
    counts[empty + 20 :] = 50
    assert toolkits_entropy(counts, 8, False) <= empty + 20
    found = bins_in_range(counts, 127, "entropy", 0)
    assert counts[: int(found)].any()
    assert found == entropy_by_definition(counts, 127)


@pytest.mark.parametrize("many", [2**24 + 1, 2**31 + 5, 2**40])
@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_large_counts_are_counted(method: Any, many: int) -> None:
    """The toolkit's counts stop at 2^24 and turn negative beyond 2^31; ranges depend on shares alone."""
    rng = np.random.default_rng(5)
    counts = rng.poisson(50 * np.exp(-np.linspace(0, 5, 300))) + 1
    assert bins_in_range(counts * many, 127, method, 99) == bins_in_range(counts, 127, method, 99)


@pytest.mark.parametrize("length", [2, 3, 127, 128, 129])
@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_short_histograms_have_a_range(method: Any, length: int) -> None:
    """Of tiny activations few bins are filled; the toolkit has no candidate then, and raises."""
    found = bins_in_range(np.ones(length, np.int64), 127, method, 99.9)
    assert 0 < found <= length
