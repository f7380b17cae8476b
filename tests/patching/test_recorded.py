"""Where a checkpoint is quantized goes with it, whatever rules there are when it is loaded."""

import json
from pathlib import Path

import models
import pytest
import torch
from torch import Tensor
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel
from transformers.models.bert import modeling_bert

import qdqpatch
from qdqpatch import QDQConfig, calibrate, dequantize, plan, quantize
from qdqpatch.errors import QuantizationWarning
from qdqpatch.patching.apply import named_quantizers
from qdqpatch.patching.recorded import KEY
from qdqpatch.patching.switch import switch_quantizers
from qdqpatch.rules.linears import Linears


def paths(model: torch.nn.Module) -> set[str]:
    return {path for path, _ in named_quantizers(model)}


@pytest.fixture
def saved(tmp_path: Path, calibrated) -> Path:
    calibrated().save_pretrained(tmp_path)
    return tmp_path


def test_config_json_says_where(saved: Path) -> None:
    record = json.loads((saved / "config.json").read_text())[KEY]
    assert len(record) == 14  # ten of a layer, three embeddings and the pooler
    assert record[6] == {
        "path": "encoder.layer.{0..1}.attention.self",
        "part": "matmuls",
        "rule": "AttentionMatmuls",
        "operation": "query x key",
        "quantizers": [
            ["matmul_q_input_quantizer", "activation"],
            ["matmul_k_input_quantizer", "activation"],
        ],
        "changes": [["guard"]],
    }


@pytest.mark.parametrize("change", ["fewer", "more"])
def test_rules_that_changed_since_move_nothing(
    change: str, saved: Path, calibrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = calibrated()
    rules = () if change == "fewer" else (Linears((modeling_bert.BertModel,)),)
    monkeypatch.setattr("qdqpatch.patching.sites.rules_of", lambda _: rules)
    loaded, info = BertModel.from_pretrained(saved, output_loading_info=True)
    assert not {*info["missing_keys"], *info["unexpected_keys"]}
    assert paths(loaded) == paths(model)
    models.assert_equal(models.outputs(loaded.eval()), models.outputs(model))


def test_another_head_takes_its_places_from_the_rules(tmp_path: Path, float_model) -> None:
    model = calibrate(quantize(float_model("BertForMaskedLM"), QDQConfig(head=True)), [models.inputs()])
    model.save_pretrained(tmp_path)
    with pytest.warns(QuantizationWarning, match=r"first one classifier\._input_quantizer"):  # not calibrated
        loaded = BertForSequenceClassification.from_pretrained(tmp_path)
    base = {path for path in paths(model) if path.startswith("bert.")}
    assert paths(loaded) == base | {
        f"classifier.{name}" for name in ("_input_quantizer", "_weight_quantizer")
    }
    assert paths(BertModel.from_pretrained(tmp_path)) == {path.removeprefix("bert.") for path in base}
    assert paths(BertForMaskedLM.from_pretrained(tmp_path)) == paths(model)


def test_ones_own_rules_go_with_the_checkpoint(tmp_path: Path, float_model) -> None:
    rules = [Linears((modeling_bert.BertPooler,), part="linears")]
    model = calibrate(quantize(float_model(), rules=rules), [models.inputs()])
    assert "pooler.dense._input_quantizer" in paths(model)
    again, first = (
        sorted(map(str, found.sites)) for found in (plan(model), plan(float_model(), rules=rules))
    )
    assert again == first
    switch_quantizers(model, {"*.layer.0.*": False})
    model.save_pretrained(tmp_path)
    loaded = BertModel.from_pretrained(tmp_path).eval()
    models.assert_equal(models.outputs(loaded), models.outputs(model))
    assert "pooler.dense._input_quantizer" in paths(loaded)


def test_a_block_that_can_no_longer_be_rewritten_is_told(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: object, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return hidden_states

    class Changed(modeling_bert.BertOutput):
        pass

    Changed.forward = forward
    monkeypatch.setattr(modeling_bert, "BertOutput", Changed)
    message = r"residual add of encoder\.layer\.\{0\.\.1\}\.output \(Changed\.forward has no residual add"
    with pytest.warns(qdqpatch.errors.QuantizationWarning, match=message):
        BertModel.from_pretrained(saved)


def test_a_float_model_has_no_record(saved: Path, calibrated) -> None:
    model = dequantize(BertModel.from_pretrained(saved))
    assert not hasattr(model.config, KEY)
