"""Clipped share and signal to quantization noise ratio, from a histogram and from the tensor itself."""

import numpy as np
import pytest
import torch
from reports import SHARE_TOLERANCE, quantizer, statistics
from torch import Tensor

from qdqpatch.nn.fake_quantize import absolute_max
from qdqpatch.report.quality import Quality, of_statistics, of_tensor

# Between 1/32 and 1/16 of a step lie in a bin, so the spread within bins changes next to nothing; the
# largest difference is from zeros and other values that gather in the first bin.
DB_TOLERANCE = 0.1


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(100_000, generator=generator)
    return {
        "normal": normal,
        "GELU": torch.nn.functional.gelu(3 * normal),
        "ReLU": normal.relu(),
        "probabilities": torch.softmax(4 * normal.view(1000, 100), -1),
        "outlier": torch.cat([normal, torch.tensor([100.0])]),
        "heavy tails": normal / torch.randn(100_000, generator=generator).abs().clamp(0.05),
    }


# narrow_range: the histogram has no signs, and takes both sides to end at the range.
@pytest.mark.parametrize("num_bits", [4, 8])
@pytest.mark.parametrize("fraction", [1.5, 1.0, 0.5, 0.1])
@pytest.mark.parametrize("name", tensors())
def test_figures_from_a_histogram_are_those_of_the_tensor(name: str, fraction: float, num_bits: int) -> None:
    values = tensors()[name]
    settings = {"num_bits": num_bits, "narrow_range": True}
    amax = fraction * values.abs().max()
    exact = of_tensor(values, amax, quantizer(**settings))
    found = of_statistics(statistics(values, **settings), float(amax))
    assert found.sqnr_db == pytest.approx(exact.sqnr_db, abs=DB_TOLERANCE)
    assert found.clipped_share == pytest.approx(exact.clipped_share, abs=SHARE_TOLERANCE)
    assert (found.clipped_share == 0) == (fraction >= 1)


@pytest.mark.parametrize("fraction", [1.5, 0.5])
@pytest.mark.parametrize("name", ["normal", "GELU", "outlier"])
def test_figures_of_fp8_are_those_of_the_tensor(name: str, fraction: float) -> None:
    values = tensors()[name]
    amax = fraction * values.abs().max()
    exact = of_tensor(values, amax, quantizer(num_bits=(4, 3)))
    found = of_statistics(statistics(values, num_bits=(4, 3)), float(amax))
    # Near zero the levels are finer than the bins.
    assert found.sqnr_db == pytest.approx(exact.sqnr_db, abs=DB_TOLERANCE)


def test_exact_figures_follow_their_definition() -> None:
    values = torch.tensor([0.2, -0.6, 1.0, -3.0])
    levels = torch.tensor([0.0, -1.0, 1.0, -1.0])  # 2 bits without the lowest: -1, 0, 1
    noise = float(((levels - values) ** 2).sum())
    found = of_tensor(values, torch.tensor(1.0), quantizer(num_bits=2, narrow_range=True))
    assert found.clipped_share == 0.25
    assert found.sqnr_db == pytest.approx(10 * np.log10(float((values**2).sum()) / noise), abs=1e-5)


def test_evenly_spread_values_have_six_decibels_a_bit() -> None:
    # Bennett: x^2 is 1/3 on average, and the noise step^2/12 with 2^b - 1 steps over both sides.
    values = torch.linspace(-1, 1, 200_001)
    for bits in (4, 6, 8):
        steps = 2**bits - 2
        found = of_statistics(statistics(values, num_bits=bits, narrow_range=True), 1.0)
        assert found.sqnr_db == pytest.approx(20 * np.log10(steps), abs=0.02)


def test_a_weight_with_a_range_per_channel() -> None:
    weight = torch.randn(4, 500, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[1.0], [10.0], [100.0], [0.0]]
    )
    per_channel = quantizer(axis=0)
    amax = absolute_max(weight, 0)
    found = of_tensor(weight, amax, per_channel)
    noise = (per_channel.quantized(weight, amax) - weight).double().square().sum()
    assert found.clipped_share == 0
    assert found.sqnr_db == pytest.approx(float(10 * torch.log10(weight.double().square().sum() / noise)))
    half = of_tensor(weight, amax / 2, per_channel)
    assert half.clipped_share == float((weight.abs() > amax / 2).double().mean()) > 0


@pytest.mark.parametrize("amax", [0.0, 1.0])
def test_a_tensor_that_was_zero_everywhere(amax: float) -> None:
    assert of_statistics(statistics(torch.zeros(9)), amax) == Quality(0.0, None)
    assert of_tensor(torch.zeros(9), torch.tensor(amax), quantizer()) == Quality(0.0, None)


def test_a_range_of_zero_loses_everything() -> None:
    values = torch.linspace(0.5, 1, 64)
    exact = of_tensor(values, torch.tensor(0.0), quantizer())
    assert exact == of_statistics(statistics(values), 0.0) == Quality(1.0, 0.0)


def test_values_that_are_levels_have_no_noise() -> None:
    assert of_tensor(torch.arange(-127.0, 128), torch.tensor(127.0), quantizer()) == Quality(0.0, None)
