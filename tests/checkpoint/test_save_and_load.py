"""Everything in which a quantized model is kept: transformers' checkpoints, pickles, copies, state dicts."""

import copy
import io
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel

from qdqpatch import QDQConfig, calibrate, dequantize, load_qdqbert, quantize
from qdqpatch.errors import ConfigError, OverrideError, QuantizationWarning
from qdqpatch.patching.apply import is_quantized, named_quantizers
from qdqpatch.patching.guard import FIELD as GUARD
from qdqpatch.patching.recorded import KEY

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
pytestmark = pytest.mark.filterwarnings("ignore:The checkpoint has ranges for only some")
"""Models of which every other quantizer has a range are among the states."""

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


def save_as_bin(model: PreTrainedModel, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def save_as_old_bin(model: PreTrainedModel, folder: Path) -> None:
    save_as_bin(model, folder)
    file = folder / "pytorch_model.bin"
    torch.save(model.state_dict(), file, _use_new_zipfile_serialization=False)


def save_as_shards(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


FORMATS: dict[str, Callable[[PreTrainedModel, Path], None]] = {
    "safetensors": lambda model, folder: model.save_pretrained(folder),
    "shards": save_as_shards,
    "bin": save_as_bin,
    "bin before torch 1.6": save_as_old_bin,
}


@pytest.mark.parametrize("state", STATES)
def test_save_and_load_give_the_same_model(state: str, any_head: str, tmp_path: Path) -> None:
    model = in_state(state, any_head)
    model.save_pretrained(tmp_path)
    loaded = load(auto(any_head), tmp_path)
    assert_same(loaded, model, any_head)
    assert not loaded.training


def test_ranges_for_only_some_quantizers_are_told(tmp_path: Path) -> None:
    model = models.calibrated()
    quantizers = dict(named_quantizers(model))
    for path in list(quantizers)[3:5]:
        quantizers[path].drop_range()
    model.save_pretrained(tmp_path)
    first = list(quantizers)[3]
    message = (
        rf"only some of the {len(quantizers)} .*: 2 quantizers have no range yet, the first one {first}\."
    )
    with pytest.warns(QuantizationWarning, match=message) as told:
        AutoModel.from_pretrained(tmp_path)
    assert len(told) == 1


def test_a_range_that_the_configuration_fixes_is_not_missed(tmp_path: Path) -> None:
    fixed = QDQConfig(activation={"amax": 4.0})
    model = quantize(models.float_model(), fixed)
    for path, quantizer in named_quantizers(model):
        if path.endswith("_weight_quantizer"):
            quantizer.load_range(
                model.get_parameter(path.replace("_weight_quantizer", "weight")).abs().amax()
            )
        else:
            quantizer.drop_range()
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("state", STATES)
def test_every_format_is_read(state: str, write: Any, tmp_path: Path) -> None:
    model = in_state(state, "BertForMaskedLM")
    write(model, tmp_path)
    assert_same(load(AutoModelForMaskedLM, tmp_path), model, "BertForMaskedLM")


@pytest.mark.parametrize(
    "options", [{"device_map": "cpu"}, {"device_map": {"": "cpu"}}, {"dtype": "auto"}], ids=str
)
def test_options_of_loading(options: dict[str, Any], any_head: str, calibrated, tmp_path: Path) -> None:
    model = calibrated(any_head)
    model.save_pretrained(tmp_path)
    assert_same(load(auto(any_head), tmp_path, **options), model, any_head)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_an_attention_asked_for_while_loading_is_the_float_models(
    implementation: str, calibrated, tmp_path
) -> None:
    model = calibrated()
    model.save_pretrained(tmp_path)
    loaded = load(AutoModel, tmp_path, attn_implementation=implementation)
    assert_same(loaded, model, "BertModel")
    assert dequantize(loaded).config._attn_implementation == implementation


@pytest.mark.parametrize(
    "config",
    [
        QDQConfig(weight={"num_bits": 8}),
        QDQConfig(weight={"num_bits": 4, "axis": 0}, activation={"num_bits": 6, "narrow_range": True}),
        QDQConfig.preset("linear-only"),
        QDQConfig.preset("no-residual"),
        QDQConfig(**models.PARTS_ON),
        QDQConfig(overrides=["*.layer.0.*=off", "*_weight_quantizer=num_bits:4,axis:none"]),
        QDQConfig(overrides=["*.query._input_quantizer=off"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForSequenceClassification"])
def test_every_recipe_survives(config: QDQConfig, name: str, float_model, tmp_path: Path) -> None:
    model = calibrate(quantize(float_model(name), config), [models.inputs(name)])
    model.save_pretrained(tmp_path)
    loaded = load(auto(name), tmp_path)
    assert_same(loaded, model, name)
    disabled = [path for path, quantizer in named_quantizers(model) if not quantizer.is_enabled]
    assert [path for path, quantizer in named_quantizers(loaded) if not quantizer.is_enabled] == disabled


def test_saving_what_was_loaded_writes_the_same_again(calibrated, tmp_path: Path) -> None:
    calibrated("BertForMaskedLM").save_pretrained(tmp_path / "first")
    load(AutoModelForMaskedLM, tmp_path / "first").save_pretrained(tmp_path / "second")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    # transformers 5.0 gives LayerNorm's parameters their names of old whenever it saves what it loaded.
    modern = {
        name.replace(".gamma", ".weight").replace(".beta", ".bias"): tensor for name, tensor in second.items()
    }
    models.assert_equal(modern, first)
    texts = [(tmp_path / name / "config.json").read_text() for name in ("first", "second")]
    assert texts[0] == texts[1]


def test_a_checkpoint_says_how_it_was_quantized(calibrated, tmp_path: Path) -> None:
    model = calibrated()
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["quantization_config"]["quant_method"] == "qdqpatch"
    assert QDQConfig.from_dict(written["quantization_config"]) == model.config.quantization_config
    ours = ("quantization_config", KEY, GUARD)
    assert "qdqpatch" not in json.dumps({key: value for key, value in written.items() if key not in ours})


def test_loading_needs_no_cuda(calibrated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("CUDA was asked for")

    calibrated().save_pretrained(tmp_path)
    monkeypatch.setattr(Tensor, "cuda", refuse)
    monkeypatch.setattr(nn.Module, "cuda", refuse)
    load(AutoModel, tmp_path)
    models.uncalibrated().load_state_dict(models.calibrated().state_dict())


def test_a_loaded_model_can_be_trained_calibrated_and_dequantized(
    calibrated, float_model, tmp_path: Path
) -> None:
    name = "BertForSequenceClassification"
    calibrated(name).save_pretrained(tmp_path)
    model = load(auto(name), tmp_path)
    assert models.gradients(model.train(), name)
    before = models.ranges(model)
    calibrate(model, [models.inputs(name, seed=9)])
    assert any(not torch.equal(amax, before[path]) for path, amax in models.ranges(model).items())
    expected = models.outputs(float_model(name), name)
    models.assert_equal(models.outputs(dequantize(model.eval()), name), expected)


# Another head.


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


# Quantizing while loading.


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


def test_an_unknown_key_in_a_checkpoint_is_named(calibrated, tmp_path: Path) -> None:
    calibrated().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["group_size"] = 128
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="'group_size'"):
        AutoModel.from_pretrained(tmp_path)


def test_a_float_checkpoint_stays_float(float_model, tmp_path: Path) -> None:
    dequantize(quantize(float_model())).save_pretrained(tmp_path)
    loaded = load(AutoModel, tmp_path)
    assert not is_quantized(loaded)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert not any("quantizer" in name for name in load_file(tmp_path / "model.safetensors"))


def test_output_attentions_in_the_config_fails_before_anything_is_written(tmp_path: Path) -> None:
    floating = models.build(attn_implementation="eager")
    floating.config.output_attentions = True
    model = quantize(floating)
    assert "attentions.0" in models.outputs(model)
    before = models.snapshot(model)
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(ConfigError, match=r"config\.output_attentions = False"):
            model.save_pretrained(folder)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    models.assert_unchanged(model, before)
    model.config.output_attentions = False
    model.save_pretrained(tmp_path / "new")
    assert_same(load(AutoModel, tmp_path / "new"), model, "BertModel")


# Other ways to keep a model.


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


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Make a tokenizer of as many words as the tiny models know."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{index}" for index in range(43))]
    made = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)


def test_a_pipeline_fills_masks(calibrated, tmp_path: Path) -> None:
    model = calibrated("BertForMaskedLM")
    text = "word3 [MASK] word5"
    made = tokenizer()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    answers = [
        transformers.pipeline("fill-mask", model=candidate, tokenizer=made, device="cpu")(text)
        for candidate in (model, loaded)
    ]
    with torch.no_grad():
        logits = model(**made(text, return_tensors="pt")).logits[0, 2]
    assert [answer["token"] for answer in answers[0]] == logits.topk(5).indices.tolist()
    assert answers[0][0]["score"] == logits.softmax(-1).max().item()
    assert answers[1] == answers[0]


def test_a_pipeline_pads_without_a_trace(calibrated) -> None:
    made = tokenizer()
    texts = ["word1 word2", "word3 word4 word5 word6 word7"]
    pipe = transformers.pipeline(
        "text-classification", model=calibrated("BertForSequenceClassification"), tokenizer=made, device="cpu"
    )
    # One batch and one by one: sums over another length round otherwise, so probabilities within a step.
    for together, alone in zip(pipe(texts, batch_size=2), map(pipe, texts), strict=True):
        assert together["label"] == alone[0]["label"]
        assert abs(together["score"] - alone[0]["score"]) < 1 / 127


def test_the_loader_for_old_checkpoints_refuses_ours(calibrated, tmp_path: Path) -> None:
    calibrated().save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"type 'bert', not 'qdqbert'.*AutoModel"):
        load_qdqbert(tmp_path)
