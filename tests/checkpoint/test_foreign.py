"""Checkpoints that are damaged or not what they seem, and every command that reads one."""

import shutil
from pathlib import Path

import models
import pytest
import torch
from checkpoints import write_tokenizer
from commands import invoke
from damages import DAMAGED, HEAD, INPUT, RANGES, UNCLEAR, change_config, change_weights, lose, tensors_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from qdqpatch import load_qdqbert, plan, quantize, save_qdqbert
from qdqpatch.checkpoint.source import open_checkpoint
from qdqpatch.errors import CheckpointError, ConfigError

COMMANDS = {
    "inspect": ["ckpt"],
    "convert": ["ckpt", "out"],
    "export": ["ckpt", "out", "--no-check"],
    "eval": ["ckpt", "--data", "data.tsv", "--task", "text-classification"],
    "bench": ["ckpt", "--shape", "1x8", "--rounds", "1", "--engine", "torch"],
    "sensitivity": ["ckpt", "--data", "data.tsv", "--task", "text-classification"],
    "train": ["ckpt", "out", "--data", "data.tsv", "--task", "text-classification"],
}


READING_A_FLOAT_ONE = ("inspect", "convert", "eval", "bench", "sensitivity", "train")


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


def test_an_old_checkpoint_that_is_not_whole_is_refused(calibrated, tmp_path: Path) -> None:
    save_qdqbert(calibrated(HEAD), tmp_path)
    lose(tmp_path)
    with pytest.raises(CheckpointError, match="is not whole: it lacks bert"):
        load_qdqbert(tmp_path)


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
