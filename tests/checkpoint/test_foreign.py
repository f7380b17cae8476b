"""Checkpoints that are damaged or not what they seem, and every command that reads one."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from checkpoints import write_tokenizer
from commands import invoke
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from qdqpatch import QDQConfig, calibrate, load_qdqbert, plan, quantize, save_qdqbert
from qdqpatch.checkpoint.source import open_checkpoint
from qdqpatch.errors import (
    CalibrationError,
    CheckpointError,
    ConfigError,
    NotQuantizedError,
    QuantizationWarning,
)
from qdqpatch.training import train_ranges

HEAD = "BertForSequenceClassification"
INPUT = "bert.encoder.layer.0.attention.self.query._input_quantizer._amax"
WEIGHT = "bert.encoder.layer.0.attention.self.query._weight_quantizer._amax"

COMMANDS = {
    "inspect": ["ckpt"],
    "convert": ["ckpt", "out"],
    "export": ["ckpt", "out", "--no-check"],
    "eval": ["ckpt", "--data", "data.tsv", "--task", "text-classification"],
    "bench": ["ckpt", "--shape", "1x8", "--rounds", "1", "--engine", "torch"],
    "sensitivity": ["ckpt", "--data", "data.tsv", "--task", "text-classification"],
    "train": ["ckpt", "out", "--data", "data.tsv", "--task", "text-classification"],
}
WITHOUT_TASK = ("inspect", "convert", "export", "bench")
READING_A_FLOAT_ONE = ("inspect", "convert", "eval", "bench", "sensitivity", "train")


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Let `change` edit the tensors in place, or return others."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    changed = change(tensors)
    save_file(tensors if changed is None else changed, file, {"format": "pt"})


def write_bin(folder: Path, content: object) -> None:
    (folder / "model.safetensors").unlink()
    if isinstance(content, bytes):
        (folder / "pytorch_model.bin").write_bytes(content)
    else:
        torch.save(content, folder / "pytorch_model.bin")


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def index(folder: Path, content: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)


def prefixed(prefix: str) -> Callable[[Path], None]:
    return lambda folder: change_weights(
        folder, lambda tensors: {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    )


def layer_of_positions(folder: Path) -> None:
    change_config(folder, position_embedding_type="relative_key")
    name = "bert.encoder.layer.0.attention.self.distance_embedding.weight"
    change_weights(folder, lambda tensors: tensors.update({name: torch.ones(63, 12)}))


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (cut, r"ckpt/model\.safetensors is damaged"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "(ckpt has no weights|nothing to run in ckpt)",
    ),
    "pointer": (
        lambda folder: write_bin(folder, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        r"ckpt/pytorch_model\.bin is a pointer of git-lfs.*git lfs pull",
    ),
    "web page": (
        lambda folder: write_bin(folder, b"<!doctype html>"),
        r"ckpt/pytorch_model\.bin is a web page",
    ),
    "pickle": (
        lambda folder: write_bin(folder, pickle.dumps(print)),
        r"ckpt/pytorch_model\.bin (holds other|is damaged)",
    ),
    "whole model": (
        lambda folder: write_bin(folder, models.float_model()),
        "holds other objects than tensors.*state_dict",
    ),
    "list": (lambda folder: write_bin(folder, [torch.ones(1)]), r"holds a list, not a state dict"),
    "wrapped": (
        lambda folder: write_bin(folder, {"model": tensors_of(folder), "epoch": 3}),
        r"ckpt/pytorch_model\.bin holds the weights under 'model'.*Take them out",
    ),
    "numbers": (lambda folder: write_bin(folder, {"epoch": 3}), r"something else than tensors \(epoch\)"),
    "index": (lambda folder: index(folder, "{"), r"Cannot read ckpt/model\.safetensors\.index\.json"),
    "index without map": (lambda folder: index(folder, "[]"), r"index\.json is no index of weights"),
    "index of numbers": (
        lambda folder: index(folder, '{"weight_map": {"a": 1}}'),
        r"index\.json is no index of weights",
    ),
    "packed": (
        lambda folder: change_weights(
            folder,
            lambda tensors: tensors.update({name: tensor.to(torch.int8) for name, tensor in tensors.items()}),
        ),
        r"holds numbers of 8 bits, as another tool packs them \(bert\.",
    ),
    "whole numbers": (
        lambda folder: change_weights(
            folder,
            lambda tensors: tensors.update(
                {name: tensor.to(torch.int32) for name, tensor in tensors.items()}
            ),
        ),
        r"is damaged: bert\.[\w.]+ is of type I32, and weights are floats",
    ),
    "complex numbers": (
        lambda folder: change_weights(
            folder, lambda tensors: tensors.update({"bert.pooler.dense.bias": torch.zeros(24) + 0j})
        ),
        r"is damaged: bert\.pooler\.dense\.bias is of type C64, and",
    ),
    "sizes": (
        lambda folder: change_config(folder, intermediate_size=48),
        r"intermediate\.dense\.bias has shape \(40,\) in it, and \(48,\)",
    ),
    "pruned": (
        lambda folder: change_config(folder, intermediate_size=48, pruned_heads={"0": [1]}),
        "transformers 5 has no pruned heads",
    ),
    "module": (prefixed("module."), r"begin with 'module\.', which DistributedDataParallel"),
    "compiled": (prefixed("_orig_mod."), r"begin with '_orig_mod\.', which torch\.compile"),
    "unmerged": (
        prefixed("base_model.model."),
        r"begin with 'base_model\.model\.', which peft.*merge_and_unload",
    ),
    "other names": (prefixed("x.y.z.w."), "ckpt holds next to no weights of BertForSequenceClassification"),
    "layer lost": (
        lambda folder: lose(folder),
        r"ckpt is not whole: it lacks bert\.encoder\.layer\.1\.output\.dense\.bias\.",
    ),
    "adapter beside": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        "ckpt holds an adapter.*merge_and_unload",
    ),
    "adapter within": (
        lambda folder: change_weights(
            folder,
            lambda tensors: tensors.update(
                {"bert.encoder.layer.0.attention.self.query.lora_A.weight": torch.ones(2, 24)}
            ),
        ),
        "no place for 1 weights of ckpt.*merge_and_unload",
    ),
    "relative positions": (layer_of_positions, r"position_embedding_type='relative_key'"),
    "other tool": (
        lambda folder: change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4}),
        r"ckpt is quantized by another tool \(gptq\)",
    ),
    "tool without a name": (
        lambda folder: change_config(folder, quantization_config={"load_in_4bit": True}),
        r"ckpt does not say which tool quantized it \(quant_method\)",
    ),
    "method of a list": (
        lambda folder: change_config(folder, quantization_config=[1]),
        "Cannot read the config of ckpt",
    ),
    "word for a number": (
        lambda folder: change_config(folder, hidden_size="big"),
        r"Cannot (read the config|build a model by the config\.json) of ckpt",  # by its version
    ),
    "no attention heads": (
        lambda folder: change_config(folder, num_attention_heads=0),
        r"Cannot build a model by the config\.json of ckpt",
    ),
    "fewer than none": (
        lambda folder: change_config(folder, num_attention_heads=-1),
        r"config\.json of ckpt: num_attention_heads is -1\.",
    ),
    "a million layers": (
        lambda folder: change_config(folder, num_hidden_layers=10**6),
        r"config\.json of ckpt is damaged: num_hidden_layers is 1000000, and there are 41 weights in all\.",
    ),
    "a billion of states": (
        lambda folder: change_config(folder, hidden_size=10**9),
        r"config\.json of ckpt is not that of its weights: it describes a model of 9\.0e\+18 numbers",
    ),
    "a billion of words": (
        lambda folder: change_config(folder, vocab_size=10**9),
        r"word_embeddings\.weight would have shape \(1000000000, 24\)\.",
    ),
    "a billion of labels": (
        lambda folder: change_config(folder, num_labels=10**9),
        r"config\.json of ckpt is damaged: num_labels is 1000000000\.",
    ),
    "a number for a class": (
        lambda folder: change_config(folder, architectures=5),
        r"architectures in config\.json of ckpt must be a list of classes, not 5\.",
    ),
    "unknown activation": (
        lambda folder: change_config(folder, hidden_act="evil"),
        r"config\.json of ckpt: 'evil'",
    ),
    "unknown dtype": (lambda folder: change_config(folder, dtype="bogus"), "Cannot read the config of ckpt"),
    "not JSON": (lambda folder: (folder / "config.json").write_text("{"), "Cannot read .*ckpt"),
}

UNCLEAR: dict[str, tuple[Callable[[Path], object], str]] = {
    "no class": (
        lambda folder: change_config(folder, architectures=None),
        r"no place for 2 weights of ckpt: classifier\.bias, classifier\.weight\..*--task",
    ),
    "a class of their own": (
        lambda folder: change_config(folder, architectures=["BertForIntent"]),
        "name the head that is wanted with --task",
    ),
    "no model's class": (
        lambda folder: change_config(folder, architectures=["pipeline"]),
        "name the head that is wanted with --task",
    ),
    "part of a head": (
        lambda folder: change_weights(
            folder, lambda tensors: tensors.update({"crf.transitions": torch.ones(3, 3)})
        ),
        r"BertForSequenceClassification has no place for 1 weights of ckpt: crf\.transitions\..*--task",
    ),
}

RANGES: dict[str, tuple[str, torch.Tensor, str]] = {
    "nan": (INPUT, torch.tensor(float("nan")), "is nan, where it must be finite"),
    "negative": (INPUT, torch.tensor(-1.0), "is -1, where it must be finite"),
    "infinite": (INPUT, torch.tensor(float("inf")), "is inf, where it must be finite"),
    "of many": (INPUT, torch.ones(3), r"has shape \(3,\), where it must be \(\)"),
    "of other rows": (WEIGHT, torch.ones(3, 1), r"has shape \(3, 1\), where it must be \(\) or \(24, 1\)"),
    "empty": (WEIGHT, torch.ones(0), r"has shape \(0,\)"),
}


def lose(folder: Path) -> None:
    change_weights(
        folder,
        lambda tensors: {
            name: tensor for name, tensor in tensors.items() if not name.endswith("layer.1.output.dense.bias")
        },
    )


@pytest.fixture(scope="module")
def float_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign") / "float"
    models.float_model(HEAD).save_pretrained(folder)
    return write_tokenizer(folder)


@pytest.fixture(scope="module")
def int8_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign") / "int8"
    models.calibrated(HEAD).save_pretrained(folder)
    return write_tokenizer(folder)


def begin(folder: Path) -> Path:
    """Copy a checkpoint to `ckpt` in the current folder, with labelled data beside it."""
    Path("data.tsv").write_text("sentence\tlabel\n" + "a cat sat\t1\nthe dog\t0\n" * 4)
    shutil.copytree(folder, "ckpt")
    return Path("ckpt")


def assert_refused(command: str, message: str) -> None:
    """Exit code 1, one line of error that ends the output, no traceback, nothing written."""
    before = sorted(Path().iterdir())
    result = invoke(command, *COMMANDS[command])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert errors == [result.stderr.strip().splitlines()[-1]]
    with pytest.raises(CheckpointError, match=message):
        raise CheckpointError(errors[0])
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("kind", DAMAGED)
def test_every_command_says_what_is_damaged(kind: str, float_folder: Path, here: Path) -> None:
    damage, message = DAMAGED[kind]
    damage(begin(float_folder))
    for command in READING_A_FLOAT_ONE:
        assert_refused(command, message)


@pytest.mark.parametrize("kind", UNCLEAR)
def test_a_head_is_not_dropped_in_silence(kind: str, float_folder: Path, here: Path) -> None:
    damage, message = UNCLEAR[kind]
    damage(begin(float_folder))
    for command in ("inspect", "convert", "bench"):
        assert_refused(command, message)
    result = invoke("convert", "ckpt", "out", "--task", "text-classification")
    assert result.exit_code == 0, result.output
    out = load_file("out/model.safetensors")
    assert torch.equal(out["classifier.weight"], tensors_of(float_folder)["classifier.weight"])


@pytest.mark.parametrize("kind", RANGES)
def test_every_command_checks_the_stored_ranges(kind: str, int8_folder: Path, here: Path) -> None:
    name, amax, message = RANGES[kind]
    change_weights(begin(int8_folder), lambda tensors: tensors.update({name: amax}))
    message = rf"The stored range of {name.removesuffix('._amax')} {message}"
    for command in COMMANDS:
        assert_refused(command, message)
    with pytest.raises(CheckpointError, match=message):
        models.model_class(HEAD).from_pretrained("ckpt")


def test_a_range_of_zero_is_told(int8_folder: Path, here: Path) -> None:
    change_weights(begin(int8_folder), lambda tensors: tensors.update({INPUT: torch.tensor(0.0)}))
    with pytest.warns(UserWarning, match="is 0, so that all values become 0 there"):
        models.model_class(HEAD).from_pretrained("ckpt")


@pytest.mark.parametrize("name", ["classifier.weight", "bert.encoder.layer.1.output.LayerNorm.bias"])
def test_numbers_that_are_none_are_found_before_the_work(name: str, float_folder: Path, here: Path) -> None:
    change_weights(begin(float_folder), lambda tensors: tensors.update({name: tensors[name] * float("nan")}))
    for command in ("convert", "eval", "sensitivity", "train"):
        assert_refused(command, rf"ckpt holds NaN or infinity in 1 of \d+ tensors: {name}\.")


def test_a_head_that_is_not_there(int8_folder: Path, here: Path) -> None:
    begin(int8_folder)
    message = r"ckpt is no model for question-answering: it lacks qa_outputs\.bias, qa_outputs\.weight\."
    result = invoke("export", "ckpt", "out", "--task", "question-answering")
    assert (result.exit_code, result.stderr) == (1, f"Error: {message}\n".replace("\\", ""))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint("ckpt", "question-answering").load()
    model, missing = open_checkpoint("ckpt", "question-answering").load(fresh_head=True)
    assert missing == ["qa_outputs.bias", "qa_outputs.weight"]
    assert type(model).__name__ == "BertForQuestionAnswering"


def test_what_pretraining_leaves_behind_is_no_fault(here: Path) -> None:
    models.float_model("BertForPreTraining").save_pretrained("ckpt")
    change_config(Path("ckpt"), architectures=["BertForMaskedLM"])
    model, missing = open_checkpoint("ckpt").load()
    assert (type(model).__name__, missing) == ("BertForMaskedLM", [])
    assert open_checkpoint("ckpt").check_weights() == []


def test_relative_positions_are_refused_by_the_library_too() -> None:
    model = models.float_model()
    model.config.position_embedding_type = "relative_key"
    for verb in (plan, quantize):
        models.assert_refused(verb, model, ConfigError, "position_embedding_type='relative_key'")


def test_a_model_with_nan_is_not_saved(calibrated, tmp_path: Path) -> None:
    model = calibrated(HEAD)
    with torch.no_grad():
        model.classifier.weight.fill_(float("inf"))
    for save in (model.save_pretrained, lambda folder: save_qdqbert(model, folder)):
        with pytest.raises(
            CheckpointError, match=r"infinity in 1 of \d+ tensors: classifier\.weight.*not saved"
        ):
            save(tmp_path / "out")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_learned_range_below_zero_is_saved_as_what_it_counts_as(calibrated, tmp_path: Path) -> None:
    model = train_ranges(calibrated(HEAD), "lsq")
    quantizer = model.get_submodule(INPUT.removesuffix("._amax"))
    with torch.no_grad():
        quantizer._amax.fill_(-0.5)
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")[INPUT].item() == 2.0**-24


def test_an_old_checkpoint_that_is_not_whole_is_refused(calibrated, tmp_path: Path) -> None:
    save_qdqbert(calibrated(HEAD), tmp_path)
    lose(tmp_path)
    with pytest.raises(CheckpointError, match="is not whole: it lacks bert"):
        load_qdqbert(tmp_path)


def test_half_precision_state_leaves_ranges_in_fp32(calibrated, uncalibrated) -> None:
    half = {name: tensor.half() for name, tensor in calibrated().state_dict().items()}
    for model in (calibrated(), uncalibrated()):
        model.load_state_dict(half, assign=True)
        assert {amax.dtype for amax in models.ranges(model).values() if amax is not None} == {torch.float32}


def test_dequantizing_to_another_dtype(calibrated) -> None:
    assert calibrated().dequantize(dtype=torch.bfloat16).dtype == torch.bfloat16


def test_ranges_of_other_names_are_refused_by_transformers_way_of_loading_too(
    calibrated, tmp_path: Path
) -> None:
    calibrated(HEAD).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    named = {f"module.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=rf"ranges of another model than this {HEAD}.*of module\.bert\."
    ):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_resized_embeddings_keep_their_ranges_and_get_new_ones() -> None:
    model = calibrate(quantize(models.float_model(), QDQConfig(embeddings=True)), [models.inputs()])
    before = model.get_input_embeddings()._weight_quantizer.amax
    model.resize_token_embeddings(60, mean_resizing=False)
    embeddings = model.get_input_embeddings()
    amax = embeddings._weight_quantizer.amax
    assert torch.equal(amax[:48], before)
    assert torch.equal(amax[48:], embeddings.weight.abs().amax(1, keepdim=True)[48:])
    models.outputs(model)


def test_a_new_head_of_a_resized_model_is_saved_as_the_float_one_that_it_is(tmp_path: Path) -> None:
    model = models.build("BertForMaskedLM", tie_word_embeddings=False)
    # transformers does not save the bias of such a new head.
    torch.nn.init.zeros_(model.cls.predictions.decoder.bias)
    calibrate(quantize(model, QDQConfig(head=True, embeddings=True)), [models.inputs("BertForMaskedLM")])
    model.resize_token_embeddings(60, mean_resizing=False)
    with pytest.warns(
        QuantizationWarning, match=r"^cls\.predictions\.decoder was exchanged for a float module"
    ):
        model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    models.assert_equal(
        models.outputs(loaded, "BertForMaskedLM"), models.outputs(model.eval(), "BertForMaskedLM")
    )
    loaded.save_pretrained(tmp_path / "again")  # without a warning


def test_a_weight_of_another_size_is_to_be_calibrated_again(calibrated) -> None:
    model = calibrated()
    linear = model.encoder.layer[0].output.dense
    linear.weight = torch.nn.Parameter(torch.ones(23, 48))
    with pytest.raises(
        CalibrationError, match=r"shape \(24, 1\) for a tensor of shape \(23, 48\).*calibrate"
    ):
        models.outputs(model)


def test_a_model_of_which_all_quantizers_are_off_is_told_so(calibrated) -> None:
    model = calibrated()
    for module in model.modules():
        if hasattr(module, "_disabled"):
            module.disable()
    with pytest.raises(NotQuantizedError, match="quantizers of this BertModel are off"):
        calibrate(model, [models.inputs()])
