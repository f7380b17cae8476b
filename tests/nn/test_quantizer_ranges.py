"""Ranges of a quantizer: set, refused, and loaded from a state dict."""

from typing import Any

import pytest
import torch
from pytorch_quantization.tensor_quant import QuantDescriptor

from qdqpatch.errors import CalibrationError
from qdqpatch.nn.quantizer import TensorQuantizer


def test_a_range_that_was_not_collected_is_an_error() -> None:
    quantizer = TensorQuantizer()
    with pytest.raises(CalibrationError, match="has not seen a tensor"):
        quantizer.load_calib_amax()
    quantizer.load_calib_amax(strict=False)
    assert quantizer.amax is None


@pytest.mark.parametrize("value", [2, 2.5, torch.tensor(2.5), torch.tensor(2.5, dtype=torch.float64)])
def test_the_range_can_be_set(value: Any) -> None:
    quantizer = TensorQuantizer()
    quantizer.amax = value
    assert quantizer.amax.dtype == torch.float32
    assert quantizer.amax.shape == ()
    assert quantizer.amax.item() == float(value)
    assert quantizer.state_dict()["_amax"] is not value


def test_setting_the_range_copies_it() -> None:
    value = torch.tensor(2.0)
    quantizer = TensorQuantizer()
    quantizer.amax = value
    value.fill_(9)
    assert quantizer.amax.item() == 2


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), torch.tensor([1.0, float("nan")])])
def test_a_range_that_is_none_is_refused(value: Any) -> None:
    quantizer = TensorQuantizer()
    with pytest.raises(CalibrationError, match="finite and not negative"):
        quantizer.amax = value
    assert quantizer.amax is None


def test_the_shape_of_a_range_cannot_change() -> None:
    quantizer = TensorQuantizer(QuantDescriptor(axis=0))
    quantizer.amax = torch.ones(3, 1)
    with pytest.raises(TypeError, match=r"\(3, 1\).*\(4, 1\)"):
        quantizer.amax = torch.ones(4, 1)


def test_a_range_gets_no_gradient() -> None:
    quantizer = TensorQuantizer()
    quantizer.amax = torch.ones((), requires_grad=True)
    quantizer(torch.ones(3, requires_grad=True)).sum().backward()
    assert not quantizer.amax.requires_grad
    assert quantizer.amax.grad is None


def test_a_state_dict_brings_a_range_to_a_quantizer_without() -> None:
    full, empty = TensorQuantizer(QuantDescriptor(amax=3.0)), TensorQuantizer()
    assert list(full.state_dict()) == ["_amax"]
    assert str(empty.load_state_dict(full.state_dict())) == "<All keys matched successfully>"
    assert torch.equal(empty.amax, full.amax)
    assert empty.amax is not full.amax


def test_a_state_dict_without_a_range_is_told() -> None:
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "_amax"'):
        TensorQuantizer(QuantDescriptor(amax=3.0)).load_state_dict({})


def test_a_range_of_a_half_precision_state_dict_becomes_fp32() -> None:
    quantizer = TensorQuantizer()
    quantizer.load_state_dict({"_amax": torch.tensor(0.5, dtype=torch.float16)})
    assert quantizer.amax.dtype == torch.float32
