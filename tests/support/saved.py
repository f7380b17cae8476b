"""Quantized models in several states, loaded again and compared."""

from pathlib import Path
from typing import Any

import models
import transformers
from transformers import PreTrainedModel

from qdqpatch.patching.apply import named_quantizers

AUTO = {
    "BertModel": "AutoModel",
    "BertLMHeadModel": "AutoModelForCausalLM",
    "BertForPreTraining": "AutoModelForPreTraining",
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "BertForSequenceClassification": "AutoModelForSequenceClassification",
    "BertForNextSentencePrediction": "AutoModelForNextSentencePrediction",
    "BertForMultipleChoice": "AutoModelForMultipleChoice",
    "BertForTokenClassification": "AutoModelForTokenClassification",
    "BertForQuestionAnswering": "AutoModelForQuestionAnswering",
}


STATES = ["uncalibrated", "half-calibrated", "calibrated"]


def auto(name: str) -> Any:
    return getattr(transformers, AUTO[name.split()[0]])


def in_state(state: str, name: str) -> PreTrainedModel:
    """Return a fresh quantized model of which all, every other or no quantizer has a range."""
    model = models.uncalibrated(name) if state == "uncalibrated" else models.calibrated(name)
    if state == "half-calibrated":
        for _, quantizer in list(named_quantizers(model))[::2]:
            del quantizer._amax
    return model


def load(model_class: Any, folder: Path, **options: Any) -> PreTrainedModel:
    """Load a model and see that the checkpoint had exactly its keys."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True, **options)
    assert {kind: set(keys) for kind, keys in info.items() if keys} == {}
    return model


def assert_same(actual: PreTrainedModel, expected: PreTrainedModel, name: str) -> None:
    """Compare class, state, recipe and outputs, bit for bit."""
    assert type(actual) is type(expected)
    models.assert_equal(dict(actual.state_dict()), dict(expected.state_dict()))
    models.assert_equal(models.ranges(actual), models.ranges(expected))
    assert actual.config.quantization_config == expected.config.quantization_config
    models.assert_equal(models.outputs(actual, name), models.outputs(expected, name))
