"""Checkpoints of the original QDQBERT classes, in both directions."""

import json
from pathlib import Path
from typing import Any

import models
import pytest
import reference_cases as reference
import torch
from pytorch_quantization.nn import QuantLinear
from pytorch_quantization.tensor_quant import QuantDescriptor
from qdqbert_checkpoints import folder_of, write
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertModel,
)

from qdqpatch import load_qdqbert
from qdqpatch.errors import CheckpointError, ConfigError

AUTO = {
    "QDQBertForSequenceClassification": AutoModelForSequenceClassification,
    "QDQBertForMaskedLM": AutoModelForMaskedLM,
}


LOADERS = {
    "load_qdqbert": lambda folder, original: load_qdqbert(folder),
    "Auto class": lambda folder, original: AUTO[original].from_pretrained(folder),
}


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_outputs_are_those_the_original_gave(original: str, loader: Any, arithmetic: str) -> None:
    case = reference.load(reference.CHECKPOINTS[original])
    model = loader(folder_of(original), original)
    assert type(model).__name__ == original.removeprefix("QDQ")
    assert not model.training
    with torch.no_grad():
        outputs = model(**case.inputs, output_hidden_states=True, output_attentions=True)
    flat = models.flatten(outputs)
    flat.pop("loss")
    models.assert_equal(flat, case.group(f"output/{arithmetic}"))


def test_every_tensor_is_loaded(original: str) -> None:
    model, info = AUTO[original].from_pretrained(folder_of(original), output_loading_info=True)
    assert not any(info.values())
    models.assert_equal(
        dict(model.state_dict()), reference.load(reference.CHECKPOINTS[original]).group("state")
    )


@pytest.mark.parametrize(
    "name", [f"{head}-{kind}" for head in models.HEADS for kind in ("dynamic", "calibrated")]
)
def test_every_head_is_loaded(name: str, tmp_path: Path) -> None:
    case = reference.load(name)
    model = load_qdqbert(write(case, tmp_path))
    assert type(model).__name__ == case.metadata["head"]
    with torch.no_grad():
        outputs = models.flatten(model(**case.inputs))
    expected = case.group("output/toolkit")
    outputs.pop("loss", None)
    models.assert_equal(outputs, {output: expected[output] for output in outputs})


def test_weights_per_tensor_show_in_the_shapes(tmp_path: Path) -> None:
    case = reference.load("BertForSequenceClassification-per_tensor_weights")
    model = load_qdqbert(write(case, tmp_path))
    assert model.config.quantization_config.weight.axis is None
    with torch.no_grad():
        assert torch.equal(model(**case.inputs).logits, case.tensors["output/toolkit/logits"])


def test_bits_are_what_the_default_descriptors_say(tmp_path: Path) -> None:
    case = reference.load("BertForSequenceClassification-4bit_weights")
    write(case, tmp_path)
    QuantLinear.set_default_quant_desc_weight(QuantDescriptor(num_bits=4, axis=(0,)))
    model = load_qdqbert(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(**case.inputs).logits, case.tensors["output/toolkit/logits"])


@pytest.mark.parametrize("target", [AutoModel, AutoModelForSequenceClassification, AutoModelForMaskedLM])
def test_a_head_is_swapped_by_loading_with_another_class(original: str, target: Any) -> None:
    model = target.from_pretrained(folder_of(original))
    own = load_qdqbert(folder_of(original))
    models.assert_equal(models.ranges(model.base_model), models.ranges(own.base_model))
    states = [models.outputs(candidate.base_model)["last_hidden_state"] for candidate in (model, own)]
    assert torch.equal(*states)


def test_options_are_passed_on(original: str) -> None:
    model = load_qdqbert(folder_of(original), dtype=torch.bfloat16, device_map="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {amax.dtype for amax in models.ranges(model).values()} == {torch.float32}


def test_its_config_is_that_of_a_bert(original: str) -> None:
    config = AutoConfig.from_pretrained(folder_of(original))
    assert config.model_type == "bert"
    assert config.architectures == [original.removeprefix("QDQ")]
    assert config.quantization_config["quant_method"] == "qdqpatch"


def test_special_tokens_are_the_originals_where_the_file_is_silent(tmp_path: Path) -> None:
    """`QDQBertConfig` had other defaults than `BertConfig`, and wrote only what differed from its own."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qdqbert"}))
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (1, 0, 2)


def test_a_checkpoint_without_architectures_is_a_bare_model(tmp_path: Path) -> None:
    case = reference.load("BertModel-calibrated")
    write(case, tmp_path, architectures=None)
    assert type(load_qdqbert(tmp_path)) is BertModel


def test_what_was_loaded_is_saved_as_a_checkpoint_of_today(original: str, tmp_path: Path) -> None:
    model = load_qdqbert(folder_of(original))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bert"
    again, info = AUTO[original].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    models.assert_equal(dict(again.state_dict()), dict(model.state_dict()))
    models.assert_equal(models.outputs(again), models.outputs(model))


def damaged(folder: Path, text: str | None) -> Path:
    if text is not None:
        (folder / "config.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "Cannot read .*config.json"),
        ("{", "Cannot read .*config.json"),
        ('{"model_type": "bert"}', "type 'bert', not 'qdqbert'.*AutoModel"),
        ("{}", "type None, not 'qdqbert'"),
        ("[]", "config.json"),
        ('{"model_type": "qdqbert", "architectures": ["QDQMistral"]}', "QDQMistral"),
        ('{"model_type": "qdqbert"}', "model.safetensors"),
    ],
)
def test_a_folder_that_holds_none_is_refused(text: str | None, said: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=said):
        load_qdqbert(damaged(tmp_path, text))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        load_qdqbert(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
@pytest.mark.parametrize("loader", [load_qdqbert, AutoModel.from_pretrained])
def test_relative_positions_are_refused(kind: str, loader: Any, tmp_path: Path) -> None:
    write(reference.load("BertModel-calibrated"), tmp_path, position_embedding_type=kind)
    with pytest.raises(ConfigError, match=f"'{kind}'.*\"absolute\""):
        loader(tmp_path)
