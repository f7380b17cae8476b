"""Copies of a quantized model: deep, by pickle, by torch.save and by state dict."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from saved import STATES, assert_same, in_state, load
from transformers import AutoModelForMaskedLM, PreTrainedModel

from qdqpatch import dequantize
from qdqpatch.patching.apply import is_quantized, named_quantizers


def through_pickle(model: PreTrainedModel) -> PreTrainedModel:
    return pickle.loads(pickle.dumps(model))


def through_torch(model: PreTrainedModel) -> PreTrainedModel:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle, through_torch])
@pytest.mark.parametrize("state", STATES)
def test_a_copy_is_the_same_and_apart(duplicate: Any, state: str, any_head: str) -> None:
    model = in_state(state, any_head)
    twin = duplicate(model)
    assert_same(twin, model, any_head)
    expected = models.outputs(model, any_head)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter += 1
        for _, quantizer in named_quantizers(twin):
            quantizer.load_range(torch.ones(()))
    models.assert_equal(models.outputs(model, any_head), expected)
    assert is_quantized(twin)
    assert not is_quantized(dequantize(twin))
    assert is_quantized(model)


@pytest.mark.parametrize("state", STATES)
def test_a_state_dict_brings_the_ranges_to_an_uncalibrated_model(
    state: str, any_head: str, uncalibrated
) -> None:
    model, other = in_state(state, any_head), uncalibrated(any_head)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(model.state_dict())
    assert_same(other, model, any_head)


def test_a_copy_can_be_saved(calibrated, tmp_path: Path) -> None:
    model = copy.deepcopy(calibrated("BertForMaskedLM"))
    model.save_pretrained(tmp_path)
    assert_same(load(AutoModelForMaskedLM, tmp_path), model, "BertForMaskedLM")
