"""Everything in which a quantized model is kept: transformers' checkpoints, pickles, copies, state dicts."""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import torch
import transformers
from safetensors.torch import load_file
from saved import STATES, assert_same, auto, in_state, load
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel

from qdqpatch import QDQConfig, calibrate, dequantize, load_qdqbert, quantize
from qdqpatch.errors import ConfigError, QuantizationWarning
from qdqpatch.patching.apply import is_quantized, named_quantizers
from qdqpatch.patching.guard import FIELD as GUARD
from qdqpatch.patching.recorded import KEY

pytestmark = pytest.mark.filterwarnings("ignore:The checkpoint has ranges for only some")
"""Models of which every other quantizer has a range are among the states."""


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


@pytest.mark.parametrize("own", [False, True])
def test_code_of_its_own_is_named_where_the_class_is_from_it(
    own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's folder of an embedder may name code though transformers has a class for it by now."""
    model = models.build()
    model.config.auto_map = {"AutoModel": "mine.MyModel"}
    if own:
        # transformers before 5.20 reads the class's file.
        monkeypatch.setitem(sys.modules, "transformers_modules.mine", sys.modules[type(model).__module__])
        model.__class__ = type("MyModel", (type(model),), {"__module__": "transformers_modules.mine"})
    quantize(model)
    calibrate(model, [models.inputs()], "max")
    model.config.save_pretrained(tmp_path)
    assert ("auto_map" in json.loads((tmp_path / "config.json").read_text())) is own
    if not own:
        model.save_pretrained(tmp_path)
        assert type(AutoModel.from_pretrained(tmp_path, trust_remote_code=True)) is transformers.BertModel


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
