"""Quantizers whose ranges change in training: their values, their gradients, and where they are kept."""

import copy
import pickle

import pytest
import torch
from pytorch_quantization.nn.modules.clip import Clip
from torch import Tensor

from qdqpatch.config.quantizer import QuantizerConfig
from qdqpatch.nn.fake_quantize import SMALLEST_AMAX
from qdqpatch.nn.learned import LearnedQuantizer, LSQQuantizer, PACTQuantizer, WeightTrackingQuantizer
from qdqpatch.nn.quantizer import TensorQuantizer

LEARNED = [LSQQuantizer, PACTQuantizer]


def quantizer(cls: type[TensorQuantizer], amax: float | Tensor = 1.5, **settings: object) -> TensorQuantizer:
    made = cls(QuantizerConfig(**settings).descriptor())
    made.amax = amax
    made.learn_range(issubclass(cls, LearnedQuantizer))
    return made


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)).requires_grad_()


def through(made: TensorQuantizer, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs, and the gradient of their weighted sum by the inputs."""
    inputs.grad = None
    outputs = made(inputs)
    weights = torch.linspace(-1, 2, outputs.numel()).view(outputs.shape)
    (outputs * weights).sum().backward()
    return outputs.detach(), inputs.grad


@pytest.mark.parametrize("cls", [*LEARNED, WeightTrackingQuantizer])
@pytest.mark.parametrize(
    "settings", [{}, {"num_bits": 4}, {"narrow_range": True}, {"scale_amax": 0.5}], ids=str
)
def test_values_are_those_of_a_frozen_range(cls: type, settings: dict, arithmetic: str) -> None:
    inputs = values(4, 5, 6)
    amax = float(inputs.detach().abs().max()) if cls is WeightTrackingQuantizer else 1.5
    frozen, changing = quantizer(TensorQuantizer, amax, **settings), quantizer(cls, amax, **settings)
    assert torch.equal(changing(inputs), frozen(inputs))
    with torch.no_grad():
        assert torch.equal(changing(inputs), frozen(inputs))


@pytest.mark.parametrize("bits", [8, 4])
def test_lsq_has_the_papers_gradients(bits: int) -> None:
    """As autograd has them through the paper's own formulation, in fp64; the order of sums differs."""
    inputs, made = values(4, 5, 6), quantizer(LSQQuantizer, num_bits=bits)
    _, by_inputs = through(made, inputs)
    low, high = made.bounds
    x, amax = (
        inputs.detach().double().requires_grad_(),
        torch.tensor(1.5, dtype=torch.float64).requires_grad_(),
    )
    scale = (x[0].numel() * high) ** -0.5
    step = amax / high
    step = (step - step * scale).detach() + step * scale  # the gradient alone is scaled
    clipped = (x / step).clamp(low, high)
    rounded = (clipped.round() - clipped).detach() + clipped
    weights = torch.linspace(-1, 2, x.numel()).view(x.shape)
    (rounded * step * weights).sum().backward()
    torch.testing.assert_close(by_inputs.double(), x.grad, rtol=1e-6, atol=0)
    torch.testing.assert_close(made._amax.grad.double(), amax.grad, rtol=1e-5, atol=0)
    assert float(amax.grad) != 0


def test_clip_has_the_gradients_of_the_toolkit() -> None:
    """Its `Clip` learns both ends, which are one range here; what is clipped is the same."""
    inputs, made = values(4, 5, 6), quantizer(PACTQuantizer)
    _, by_inputs = through(made, inputs)
    theirs = inputs.detach().clone().requires_grad_()
    clip = Clip(-1.5, 1.5, learn_min=True, learn_max=True)
    weights = torch.linspace(-1, 2, inputs.numel()).view(inputs.shape)
    (clip(theirs) * weights).sum().backward()
    assert torch.equal(by_inputs, theirs.grad)
    expected = clip.clip_value_max.grad - clip.clip_value_min.grad
    torch.testing.assert_close(made._amax.grad, expected, rtol=1e-6, atol=0)  # the order of the sum
    assert float(expected) != 0


@pytest.mark.parametrize("cls", LEARNED)
def test_a_range_that_falls_to_zero_stays_alive(cls: type) -> None:
    made, inputs = quantizer(cls, 0.0), values(2, 3)
    outputs, _ = through(made, inputs)
    assert torch.equal(outputs, torch.zeros(2, 3))
    assert torch.isfinite(made._amax.grad)
    assert made._amax.grad != 0  # it can grow again
    with torch.no_grad():
        made._amax.fill_(-1.0)
    assert torch.isfinite(made(inputs)).all()
    assert float(made(inputs).detach().abs().max()) <= SMALLEST_AMAX * 128 / 127


@pytest.mark.parametrize("cls", LEARNED)
def test_gradients_in_half_precision_are_computed_in_fp32(cls: type) -> None:
    made = quantizer(cls)
    inputs = values(4, 5, 6).detach().bfloat16().requires_grad_()
    outputs, by_inputs = through(made, inputs)
    assert (outputs.dtype, by_inputs.dtype, made._amax.grad.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    )


@pytest.mark.parametrize("cls", LEARNED)
def test_a_learned_range_is_a_parameter_in_the_same_place(cls: type) -> None:
    made = quantizer(cls)
    assert [name for name, _ in made.named_parameters()] == ["_amax"]
    assert not list(made.named_buffers())
    assert list(made.state_dict()) == ["_amax"]
    assert not made.amax.requires_grad
    made.load_range(torch.tensor(2.0))
    assert isinstance(made._amax, torch.nn.Parameter)
    assert float(made.amax) == 2
    made.half()
    assert (made._amax.dtype, isinstance(made._amax, torch.nn.Parameter)) == (torch.float32, True)
    frozen = TensorQuantizer()
    frozen.load_state_dict(made.state_dict())
    assert float(frozen.amax) == 2
    made.learn_range(False)
    assert not list(made.named_parameters())
    assert float(made._buffers["_amax"]) == 2


@pytest.mark.parametrize("cls", [*LEARNED, WeightTrackingQuantizer])
def test_they_can_be_copied_and_pickled(cls: type) -> None:
    made, inputs = quantizer(cls), values(2, 3)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert type(other) is cls
        assert torch.equal(other(inputs), made(inputs))


def test_a_following_quantizer_keeps_the_range_of_what_it_saw() -> None:
    made = quantizer(WeightTrackingQuantizer, torch.full((4, 1), 9.0), axis=0)
    weight = values(4, 3)
    outputs, gradient = through(made, weight)
    assert torch.equal(made.amax, weight.detach().abs().amax(1, keepdim=True))
    assert torch.equal(gradient, torch.linspace(-1, 2, 12).view(4, 3))  # nothing is clipped
    with torch.no_grad():
        frozen = quantizer(TensorQuantizer, made.amax, axis=0)
        assert torch.equal(outputs, frozen(weight))


@pytest.mark.parametrize("cls", LEARNED)
def test_disabled_and_collecting_it_is_as_any_other(cls: type) -> None:
    made, inputs = quantizer(cls), values(2, 3)
    made.disable()
    assert made(inputs) is inputs
    made.enable()
    made.enable_calib()
    made.disable_quant()
    assert torch.equal(made(inputs), inputs)
    assert float(made._calibrator.compute_amax()) == float(inputs.detach().abs().max())
