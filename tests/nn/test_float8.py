"""FP8 (E4M3): the levels, fake quantization to them, and what learns through it."""

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from qdqpatch.config.quantizer import QuantizerConfig
from qdqpatch.nn.float8 import E4M3, LARGEST, magnitudes, nearest
from qdqpatch.nn.learned import LSQQuantizer
from qdqpatch.nn.quantizer import TensorQuantizer


def quantizer(amax: float | None = None, kind: type[TensorQuantizer] = TensorQuantizer) -> TensorQuantizer:
    made = kind(QuantizerConfig(num_bits=E4M3).descriptor())
    if amax is not None:
        made.amax = amax
    return made


def values(seed: int = 0) -> Tensor:
    return torch.randn(40, 50, generator=torch.Generator().manual_seed(seed)) * 3


def test_the_levels_are_those_of_the_type() -> None:
    levels = magnitudes()
    assert (levels[0], levels[1], levels[-1]) == (0, 2.0**-9, LARGEST)
    assert torch.equal(nearest(levels), levels)
    halfway = (levels[1:] + levels[:-1]) / 2
    even = torch.where(torch.arange(126) % 2 == 0, levels[:-1], levels[1:])
    assert torch.equal(nearest(halfway), even)
    assert nearest(torch.tensor([1e9, -500.0])).tolist() == [LARGEST, -LARGEST]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_values_become_the_nearest_levels(dtype: torch.dtype) -> None:
    made, tensor = quantizer(4.0), values().to(dtype)
    scale = np.float32(4.0 / LARGEST)
    clipped = np.clip(tensor.float().numpy() * np.float32(LARGEST / 4.0), -LARGEST, LARGEST)
    expected = torch.from_numpy(clipped.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale)
    outputs = made(tensor)
    assert outputs.dtype == dtype
    # 448/4 and 4/448 are one rounding apart from each other's inverse.
    torch.testing.assert_close(outputs.float(), expected.to(dtype).float(), rtol=2**-22, atol=0)
    assert made.step_size == 4.0 / LARGEST
    assert torch.equal(made.integers(tensor), nearest(tensor.float() * (LARGEST / 4.0)))


def test_the_gradient_goes_straight_through_inside_the_range() -> None:
    tensor = values().requires_grad_()
    quantizer(2.0)(tensor).sum().backward()
    assert torch.equal(tensor.grad, (tensor.detach().abs() <= 2.0).float())


def test_without_a_range_each_tensors_own_is_used() -> None:
    tensor = values()
    torch.testing.assert_close(quantizer()(tensor).abs().max(), tensor.abs().max(), rtol=2**-23, atol=0)
    assert not quantizer(0.0)(tensor).any()
    per_row = TensorQuantizer(QuantizerConfig(num_bits=E4M3, axis=0).descriptor())
    # 448 is a level, and reached; back from it there is one rounding.
    torch.testing.assert_close(per_row(tensor).abs().amax(1), tensor.abs().amax(1), rtol=2**-23, atol=0)


def test_it_compiles_in_one_graph() -> None:
    made, tensor = quantizer(3.0), values()
    assert torch.equal(torch.compile(made, fullgraph=True, backend="eager")(tensor), made(tensor))


def test_a_range_learns_through_the_levels() -> None:
    made, tensor = quantizer(2.0, LSQQuantizer), values()
    made.learn_range()
    made(tensor).sum().backward()
    with torch.no_grad():
        steps = tensor * (LARGEST / 2.0)
        slope = torch.where(steps.abs() < LARGEST, nearest(steps) - steps, steps.sign() * LARGEST)
    expected = slope.sum() / (50 * LARGEST) ** 0.5 / LARGEST
    torch.testing.assert_close(made._amax.grad, expected)
