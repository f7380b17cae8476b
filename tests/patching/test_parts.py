"""A model of which a part was quantized by itself, and what is wrapped around a quantized one."""

import copy
from pathlib import Path

import models
import pytest
from torch import nn

import qdqpatch
from qdqpatch import QDQConfig, calibrate, dequantize, plan, quantize
from qdqpatch.errors import CheckpointWarning, NotQuantizedError, QuantizedError


def test_a_model_of_which_a_part_was_quantized(tmp_path: Path, float_model) -> None:
    """What its config would not tell, so that it could not be loaded again."""
    model = float_model("BertForSequenceClassification")
    quantize(model.bert)
    with pytest.raises(QuantizedError, match=r"The part bert of .* is quantized already.*\(model\.bert\)"):
        quantize(model)
    for verb in (
        plan,
        dequantize,
        lambda model: qdqpatch.export(calibrate(model, [models.inputs()]), tmp_path / "out"),
        lambda model: qdqpatch.save_qdqbert(model, tmp_path / "out"),
    ):
        with pytest.raises(NotQuantizedError, match="the part bert alone was quantized"):
            verb(model)
    dequantize(model.bert)
    quantize(model)


def test_an_adapter_around_a_quantized_model_is_to_be_merged(tmp_path: Path, calibrated) -> None:
    class Adapter(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.base_model = model

        def merge_and_unload(self) -> nn.Module:
            return self.base_model

    adapter = Adapter(calibrated("BertForSequenceClassification"))
    with pytest.raises(NotQuantizedError, match=r"an adapter of peft .*model = model\.merge_and_unload\(\)"):
        qdqpatch.export(adapter, tmp_path / "out")


def test_what_saves_more_than_the_quantized_part_is_told(tmp_path: Path, float_model) -> None:
    whole = float_model("BertForSequenceClassification")
    quantize(whole.bert)
    for model in (whole, copy.deepcopy(whole)):
        with pytest.warns(
            CheckpointWarning, match="BertForSequenceClassification the part bert alone"
        ) as caught:
            model.save_pretrained(tmp_path / "whole")
        assert len(caught) == 1
    whole.bert.save_pretrained(tmp_path / "part")
    nn.ModuleDict({"mine": whole}).state_dict()  # not to be loaded by transformers
    dequantize(whole.bert)
    whole.save_pretrained(tmp_path / "float")


def test_a_model_that_only_matmuls_mark_as_quantized_counts_too(float_model) -> None:
    model = quantize(float_model(), QDQConfig(linears=False, residual_adds=False))
    with pytest.raises(QuantizedError):
        quantize(model)
