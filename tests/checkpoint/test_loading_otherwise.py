"""Loading into another class, and quantizing while a float checkpoint is loaded."""

from pathlib import Path

import models
import pytest
import torch
from saved import STATES, assert_same, auto, in_state, load
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from qdqpatch import QDQConfig, quantize
from qdqpatch.errors import OverrideError
from qdqpatch.patching.apply import named_quantizers

pytestmark = pytest.mark.filterwarnings("ignore:The checkpoint has ranges for only some")

HEADLESS = ("cls.", "classifier.", "qa_outputs.", "bert.pooler.", "pooler.")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("BertForMaskedLM", "BertForSequenceClassification"),
        ("BertForMaskedLM", "BertModel"),
        ("BertModel", "BertForMaskedLM"),
        ("BertModel", "BertForTokenClassification"),
        ("BertForSequenceClassification", "BertForQuestionAnswering"),
        ("BertForPreTraining", "BertForMaskedLM"),
        ("BertForPreTraining", "BertForNextSentencePrediction"),
    ],
)
def test_a_head_is_swapped_by_loading_with_another_class(
    source: str, target: str, state: str, tmp_path: Path
) -> None:
    model = in_state(state, source)
    model.save_pretrained(tmp_path)
    loaded, info = auto(target).from_pretrained(tmp_path, output_loading_info=True)
    assert all(key.startswith(HEADLESS) for kind in info.values() for key in kind)
    assert type(loaded) is models.model_class(target)
    models.assert_equal(models.ranges(loaded.base_model), models.ranges(model.base_model))
    actual, expected = (
        models.outputs(candidate.base_model)["last_hidden_state"] for candidate in (loaded, model)
    )
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("pattern", ["bert.encoder.layer.0.*", "encoder.layer.0.*"])
@pytest.mark.parametrize(
    ("source", "target"), [("BertForMaskedLM", "BertModel"), ("BertModel", "BertForMaskedLM")]
)
def test_overrides_survive_a_swap_of_the_head(
    pattern: str, source: str, target: str, float_model, tmp_path: Path
) -> None:
    model = quantize(float_model(source), QDQConfig(overrides=[f"{pattern}=num_bits:4"]))
    model.save_pretrained(tmp_path)
    loaded = auto(target).from_pretrained(tmp_path)
    bits = [
        {path: quantizer.num_bits for path, quantizer in named_quantizers(candidate.base_model)}
        for candidate in (loaded, model)
    ]
    assert bits[0] == bits[1]
    assert set(bits[0].values()) == {4, 8}


def test_an_override_of_the_head_that_was_left_behind_is_no_error(float_model, tmp_path: Path) -> None:
    config = QDQConfig(overrides=["cls.predictions.decoder.*=on", "*.query.*=num_bits:4"])
    quantize(float_model("BertForMaskedLM"), config).save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.bert.encoder.layer[0].attention.self.query._weight_quantizer.num_bits == 4
    loaded.save_pretrained(tmp_path / "again")
    back = AutoModelForMaskedLM.from_pretrained(tmp_path / "again")
    assert isinstance(back.cls.predictions.decoder._weight_quantizer, nn.Module)


@pytest.mark.parametrize(
    "config", [QDQConfig(), QDQConfig(**models.PARTS_ON, weight={"num_bits": 4})], ids=str
)
def test_quantizing_while_loading_is_quantizing_after(
    config: QDQConfig, any_head: str, float_model, tmp_path: Path
) -> None:
    model = float_model(any_head)
    model.save_pretrained(tmp_path)
    loaded = load(auto(any_head), tmp_path, quantization_config=config)
    assert_same(loaded, quantize(auto(any_head).from_pretrained(tmp_path), config), any_head)


def test_a_fixed_range_is_set_while_loading(float_model, tmp_path: Path) -> None:
    config = QDQConfig(activation={"amax": 2.0}, overrides={"*.query._weight_quantizer": {"amax": 0.5}})
    float_model().save_pretrained(tmp_path / "float")
    loaded = load(AutoModel, tmp_path / "float", quantization_config=config)
    assert_same(loaded, quantize(float_model(), config), "BertModel")
    assert loaded.encoder.layer[0].output.dense._input_quantizer.amax.item() == 2
    loaded.encoder.layer[0].output.dense._input_quantizer.amax = 3.0
    loaded.save_pretrained(tmp_path / "quantized")
    assert_same(load(AutoModel, tmp_path / "quantized"), loaded, "BertModel")


def test_a_bad_recipe_fails_while_loading(float_model, tmp_path: Path) -> None:
    float_model().save_pretrained(tmp_path)
    with pytest.raises(OverrideError, match=r"'\*\.qurey\.\*'"):
        AutoModel.from_pretrained(tmp_path, quantization_config=QDQConfig(overrides=["*.qurey.*=off"]))
