import copy
import logging
import pickle
from typing import Any

import pytest
import torch
from absl import logging as absl_logging
from pytorch_quantization import nn as quant_nn
from pytorch_quantization.tensor_quant import QuantDescriptor
from torch import Tensor

from qdqpatch.nn.fake_quantize import SMALLEST_AMAX, absolute_max
from qdqpatch.nn.quantizer import TensorQuantizer

LOW_PRECISION = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def quiet_toolkit() -> None:
    absl_logging.set_verbosity(absl_logging.FATAL)


def tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 3).to(dtype)


def run(quantizer: torch.nn.Module, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs and the gradient of their sum of squares."""
    values = values.clone().requires_grad_()
    outputs = quantizer(values)
    outputs.square().sum().backward()
    return outputs.detach(), values.grad


def pair(**settings: Any) -> tuple[TensorQuantizer, quant_nn.TensorQuantizer]:
    descriptor = QuantDescriptor(**settings)
    return TensorQuantizer(descriptor), quant_nn.TensorQuantizer(descriptor)


def test_it_is_one_of_the_toolkits_quantizers() -> None:
    assert isinstance(TensorQuantizer(), quant_nn.TensorQuantizer)


SETTINGS = [
    {},
    {"num_bits": 4},
    {"num_bits": 2},
    {"num_bits": 16},
    {"unsigned": True},
    {"unsigned": True, "num_bits": 4},
    {"narrow_range": True},
    {"scale_amax": 0.7},
    {"axis": 0},
    {"axis": (0,)},
    {"axis": (-1,)},
    {"axis": (0,), "num_bits": 4, "narrow_range": True},
    {"axis": (0,), "scale_amax": 0.5},
    {"amax": 1.5},
    {"amax": 0.1, "num_bits": 4},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 5)], ids=str)
def test_outputs_and_gradients_are_the_toolkits(
    settings: dict[str, Any], shape: tuple[int, ...], arithmetic: str
) -> None:
    if settings.get("axis") == (-1,):
        settings = settings | {"axis": (len(shape) - 1,)}  # the toolkit counts no axis from the end
    ours, theirs = pair(**settings)
    values = tensor(*shape)
    values = values.abs() if settings.get("unsigned") else values
    for actual, expected in zip(run(ours, values), run(theirs, values), strict=True):
        assert torch.equal(actual, expected)
    with torch.no_grad():
        assert torch.equal(ours(values), theirs(values))


@pytest.mark.parametrize("axis", [None, 0])
def test_a_calibrated_range_clips_as_the_toolkits_does(axis: int | None, arithmetic: str) -> None:
    ours, theirs = pair(axis=axis)
    values = tensor(6, 50)
    amax = torch.tensor(1.3) if axis is None else torch.linspace(0.3, 3, 6)[:, None]
    ours.register_buffer("_amax", amax)
    theirs.register_buffer("_amax", amax)
    (actual, gradient), (expected, expected_gradient) = run(ours, values), run(theirs, values)
    assert torch.equal(actual, expected)
    assert torch.equal(gradient, expected_gradient)
    assert (gradient == 0).any()
    assert (gradient != 0).any()


def test_values_on_the_edge_of_the_range_have_the_toolkits_gradient(arithmetic: str) -> None:
    ours, theirs = pair(amax=1.0)
    step = 1 / 127
    values = torch.tensor(
        [-1.0, 1.0, 1.0 + step / 4, -1.0 - step / 2, -1.0 - step, -1.0 - 2 * step, 1 + step]
    )
    for actual, expected in zip(run(ours, values), run(theirs, values), strict=True):
        assert torch.equal(actual, expected)


def test_int8_reaches_minus_128_and_narrow_range_does_not() -> None:
    values = torch.tensor([-2.0])
    assert TensorQuantizer(QuantDescriptor(amax=127.0 / 128))(values).item() == -1.0
    narrow = TensorQuantizer(QuantDescriptor(amax=127.0 / 128, narrow_range=True))
    assert narrow(values).item() == -127 / 128


def test_the_two_arithmetics_are_a_last_bit_apart() -> None:
    values, quantizer = tensor(100), TensorQuantizer()
    exact = quantizer(values)
    quant_nn.TensorQuantizer.use_fb_fake_quant = True
    native = quantizer(values)
    assert not torch.equal(native, exact)
    # One division and one multiplication, each rounded to 2^-24 of its result.
    assert torch.allclose(native, exact, rtol=2**-22, atol=0)


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("amax", [0.0, SMALLEST_AMAX])
def test_a_range_of_zero_makes_zeros(amax: float, axis: int | None) -> None:
    ours, theirs = pair(axis=axis)
    values = tensor(3, 4) * 0 + amax
    values[0] = amax if axis is None else 1.0
    for actual, expected in zip(run(ours, values), run(theirs, values), strict=True):
        assert torch.equal(actual, expected)
    assert torch.equal(ours(values)[1:], torch.zeros(2, 4))


def test_an_all_zero_tensor_stays_zero_in_both_arithmetics(arithmetic: str) -> None:
    outputs, gradient = run(TensorQuantizer(), torch.zeros(2, 3))
    assert torch.equal(outputs, torch.zeros(2, 3))
    assert torch.equal(gradient, torch.zeros(2, 3))


def test_uncalibrated_takes_each_tensors_own_range() -> None:
    quantizer = TensorQuantizer()
    for factor in (1, 100):
        values = tensor(4, 4) * factor
        assert (quantizer(values) - values).abs().max() <= values.abs().max() / 127 / 2 * (1 + 2**-20)
    assert quantizer.amax is None
    assert "_amax" not in quantizer.state_dict()


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("has_range", [False, True])
def test_half_precision_is_the_fp32_result_rounded_once(
    dtype: torch.dtype, axis: int | None, has_range: bool, arithmetic: str
) -> None:
    quantizer = TensorQuantizer(QuantDescriptor(axis=axis))
    values = tensor(16, 33, dtype=dtype)
    if has_range:
        quantizer.amax = absolute_max(values, axis) * 0.77
    outputs, gradient = run(quantizer, values)
    expected, expected_gradient = run(quantizer, values.float())
    assert outputs.dtype == gradient.dtype == dtype
    assert torch.equal(outputs, expected.to(dtype))
    # The gradient of the squares is twice the outputs inside the range, 0 outside.
    assert torch.equal(gradient, torch.where(expected_gradient == 0, 0, 2 * outputs))


CASTS = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "double": lambda module: module.double(),
    "to": lambda module: module.to(torch.bfloat16),
    "to device and dtype": lambda module: module.to("cpu", torch.float16),
    "twice": lambda module: module.half().float(),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS.keys())
def test_the_range_stays_as_it_is_when_the_module_is_cast(cast: Any) -> None:
    quantizer = TensorQuantizer(QuantDescriptor(axis=0))
    quantizer.amax = torch.tensor([[1 / 3], [1e-6], [1e6]])
    module = cast(torch.nn.Sequential(quantizer))
    assert module[0].amax.dtype == torch.float32
    assert torch.equal(module[0].amax, torch.tensor([[1 / 3], [1e-6], [1e6]]))


def test_the_range_follows_the_device() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(amax=1.0)).to("meta", torch.float16)
    assert quantizer.amax.device.type == "meta"
    assert quantizer.amax.dtype == torch.float32


def test_disabled_returns_the_very_tensor() -> None:
    values = tensor(3)
    assert TensorQuantizer(disabled=True)(values) is values
    assert TensorQuantizer(if_quant=False)(values) is values


def test_calibration_collects_and_passes_on() -> None:
    quantizer = TensorQuantizer()
    quantizer.disable_quant()
    quantizer.enable_calib()
    values = tensor(5, 5)
    assert quantizer(values) is values
    quantizer.load_calib_amax()
    assert torch.equal(quantizer.amax, values.abs().amax())


def test_loading_and_calibrating_log_nothing(caplog: pytest.LogCaptureFixture) -> None:
    absl_logging.set_verbosity(absl_logging.WARNING)
    with caplog.at_level(logging.WARNING):
        quantizer = TensorQuantizer()
        quantizer.load_state_dict({"_amax": torch.tensor(1.0)})
        quantizer.load_state_dict({"_amax": torch.tensor(2.0)})
        quantizer.enable_calib()
        quantizer(tensor(3))
        quantizer.load_calib_amax()
    assert not caplog.records


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda quantizer: pickle.loads(pickle.dumps(quantizer))]
)
def test_a_copy_computes_the_same(duplicate: Any) -> None:
    quantizer = TensorQuantizer(QuantDescriptor(num_bits=5, axis=0, narrow_range=True))
    quantizer.amax = torch.rand(4, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    twin = duplicate(quantizer)
    assert torch.equal(twin(tensor(4, 9)), quantizer(tensor(4, 9)))
    twin.amax = torch.ones(4, 1)
    assert not torch.equal(quantizer.amax, twin.amax)


@pytest.mark.parametrize(
    ("axis", "shape"),
    [
        (None, ()),
        (0, (2, 1, 1)),
        ((0,), (2, 1, 1)),
        (-1, (1, 1, 4)),
        ((0, 2), (2, 1, 4)),
        ((0, -1), (2, 1, 4)),
    ],
)
def test_absolute_max(axis: Any, shape: tuple[int, ...]) -> None:
    values = tensor(2, 3, 4, dtype=torch.float16).requires_grad_()
    amax = absolute_max(values, axis)
    reference = values.detach().float().abs()
    for dim in range(3):
        if len(shape) == 0 or shape[dim] == 1:
            reference = reference.amax(dim, keepdim=True)
    assert amax.shape == shape
    assert amax.dtype == torch.float32
    assert not amax.requires_grad
    assert torch.equal(amax.reshape(reference.shape), reference)


@pytest.mark.parametrize("axis", [None, 0])
def test_gradients_are_recorded_only_where_asked_for(axis: int | None) -> None:
    quantizer = TensorQuantizer(QuantDescriptor(axis=axis))
    values = tensor(3, 4).requires_grad_()
    outputs = quantizer(values)
    (gradient,) = torch.autograd.grad(outputs, values, torch.ones_like(outputs))
    assert torch.equal(gradient, torch.ones(3, 4))
    assert outputs.requires_grad
    assert not quantizer(values.detach()).requires_grad
    with torch.no_grad():
        assert not quantizer(values).requires_grad


def test_fp64_is_quantized_in_fp64() -> None:
    values = torch.linspace(-1, 1, 1001, dtype=torch.float64) * (1 + 1e-12)
    quantizer = TensorQuantizer(QuantDescriptor(amax=0.75))
    outputs = quantizer(values)
    levels = (values * (torch.tensor(127.0) / torch.tensor(0.75)).double()).round().clamp(-128, 127)
    assert outputs.dtype == torch.float64
    assert torch.equal(outputs, levels / (torch.tensor(127.0) / torch.tensor(0.75)).double())
