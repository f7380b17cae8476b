"""The numbers of QuantizeLinear for a quantizer, and those that it has none for."""

import numpy as np
import pytest
import torch

from qdqpatch.errors import ExportError
from qdqpatch.exporter.grids import LARGEST_SCALE, Grid, activation_grid, weight_grid
from qdqpatch.nn.fake_quantize import SMALLEST_AMAX
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.nn.toolkit import QuantDescriptor


def quantizer(amax: float | torch.Tensor | None = 2.5, **settings: object) -> TensorQuantizer:
    made = TensorQuantizer(QuantDescriptor(**settings))
    if amax is not None:
        made.amax = amax
    return made


def weight(rows: int = 4) -> torch.Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("unsigned", "levels"), [(False, 127), (True, 255)])
def test_an_activation_has_one_scale(unsigned: bool, levels: int) -> None:
    grid = activation_grid(quantizer(unsigned=unsigned), "x")
    assert grid == Grid(np.float32(2.5) / np.float32(levels), None, unsigned)
    assert grid.scale.dtype == np.float32
    assert grid.times(0.5) == Grid(grid.scale * np.float32(0.5), None, unsigned)


def test_a_factor_on_the_range_counts() -> None:
    grid = activation_grid(quantizer(scale_amax=0.5), "x")
    assert grid.scale == np.float32(1.25) / np.float32(127)


@pytest.mark.parametrize("amax", [0.0, SMALLEST_AMAX])
def test_a_range_of_zero_makes_every_value_the_level_0(amax: float) -> None:
    scale = activation_grid(quantizer(amax), "x").scale
    assert scale == np.float32(LARGEST_SCALE)
    assert np.isfinite(scale * np.float32(-128))
    assert np.round(np.float32(5e5) / scale) == 0
    assert activation_grid(quantizer(1.01 * SMALLEST_AMAX), "x").scale < 1e-8


@pytest.mark.parametrize("axis", [0, None])
@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize(("narrow", "lowest"), [(False, -128), (True, -127)])
def test_a_weight_has_the_quantizers_levels(
    axis: int | None, calibrated: bool, narrow: bool, lowest: int, arithmetic: str
) -> None:
    tensor = weight()
    tensor[1] *= 3
    made = quantizer(None, axis=axis, narrow_range=narrow)
    if calibrated:  # smaller than the weight, so that it is clipped
        made.amax = 0.5 * (tensor.abs().max() if axis is None else tensor.abs().amax(1, keepdim=True))
    grid, integers = weight_grid(made, torch.nn.Parameter(tensor), "w")
    assert integers.dtype == np.int8
    assert (integers == made.integers(tensor).numpy()).all()
    if calibrated:
        assert integers.min() == (-128 if arithmetic == "fb" else lowest)
    assert (grid.axis, grid.scale.shape) == ((0, (4,)) if axis == 0 else (None, ()))
    scale = grid.scale[:, None] if axis == 0 else grid.scale
    # The toolkit divides by 127/amax where the engines multiply by amax/127: each rounds twice.
    np.testing.assert_array_max_ulp(
        integers * scale, made(tensor).numpy(), maxulp=0 if arithmetic == "fb" else 2
    )


def test_a_row_of_zeros_stays_zero() -> None:
    tensor = weight()
    tensor[2] = 0
    grid, integers = weight_grid(quantizer(None, axis=0), tensor, "w")
    assert not integers[2].any()
    assert (grid.scale == np.float32(LARGEST_SCALE)).tolist() == [False, False, True, False]


ROWS = torch.ones(4, 1)
REFUSED = [
    (quantizer(None), "has no range yet. Calibrate the model first"),
    (
        quantizer(ROWS, axis=0),
        "has a range per channel, which no engine's integer matmul takes. Quantize it with axis=None",
    ),
    (
        quantizer(narrow_range=True),
        "has a narrow range, -127 to 127, which QuantizeLinear does not clip to. Quantize it with ",
    ),
    (
        quantizer(num_bits=4),
        "has 4 bits, and the engines' integer kernels have 8. Quantize it with num_bits=8",
    ),
]


@pytest.mark.parametrize(("made", "message"), REFUSED)
def test_activations_that_no_engine_has(made: TensorQuantizer, message: str) -> None:
    with pytest.raises(ExportError) as raised:
        activation_grid(made, "a.b._input_quantizer")
    assert str(raised.value).startswith(f"a.b._input_quantizer {message}")


def test_weights_have_a_range_for_each_row() -> None:
    with pytest.raises(
        ExportError, match=r"^a\.b has a range per column; .* one per row\. Quantize it with axis=0,"
    ):
        weight_grid(quantizer(None, axis=1), weight(), "a.b")


def test_weights_have_8_bits() -> None:
    with pytest.raises(ExportError, match=r"^a\.b has 6 bits"):
        weight_grid(quantizer(None, num_bits=6, axis=0), weight(), "a.b")
