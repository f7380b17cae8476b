"""Checkpoints that the original QDQBERT classes load, written by `save_qdqbert`."""

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import models
import pytest
import reference_cases as reference
import torch
from pytorch_quantization.nn import QuantLinear, TensorQuantizer
from pytorch_quantization.tensor_quant import QuantDescriptor
from qdqbert_checkpoints import folder_of, original_tensors
from safetensors.torch import load_file, save_file

from qdqpatch import QDQConfig, calibrate, load_qdqbert, quantize, save_qdqbert
from qdqpatch.checkpoint.qdqbert import ARCHITECTURES
from qdqpatch.errors import (
    CheckpointError,
    ConfigError,
    NotQuantizedError,
    QuantizationWarning,
    UnsupportedModelError,
)
from qdqpatch.output.folder import OutputFolder


def test_loading_and_saving_gives_what_the_original_wrote(original: str, tmp_path: Path) -> None:
    save_qdqbert(load_qdqbert(folder_of(original)), tmp_path)
    written, expected = load_file(tmp_path / "model.safetensors"), original_tensors(original)
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"} & expected.keys()
    models.assert_equal(written, {name: tensor for name, tensor in expected.items() if name not in tied})
    config = json.loads((tmp_path / "config.json").read_text())
    expected_config = json.loads((folder_of(original) / "config.json").read_text())
    del expected_config["transformers_version"]
    assert {name: config.get(name) for name in expected_config} == expected_config
    assert "quantization_config" not in config
    assert "qdqpatch" not in json.dumps(config)


def test_the_untied_file_is_the_very_same_set_of_tensors(tmp_path: Path) -> None:
    """The original dropped no tensor of a classifier, so neither do we."""
    original = "QDQBertForSequenceClassification"
    save_qdqbert(load_qdqbert(folder_of(original)), tmp_path)
    models.assert_equal(
        load_file(tmp_path / "model.safetensors"), load_file(folder_of(original) / "model.safetensors")
    )


@pytest.mark.parametrize("state", ["uncalibrated", "calibrated"])
@pytest.mark.parametrize("name", [name for name in models.CHANGES if name != "BertForPreTraining"])
def test_save_and_load_give_the_same_model(name: str, state: str, tmp_path: Path) -> None:
    model = getattr(models, state)(name)
    save_qdqbert(model, tmp_path)
    loaded = load_qdqbert(tmp_path)
    assert type(loaded) is type(model)
    models.assert_equal(dict(loaded.state_dict()), dict(model.state_dict()))
    models.assert_equal(models.outputs(loaded, name), models.outputs(model, name))
    for field in (
        "is_decoder",
        "add_cross_attention",
        "num_labels",
        "pad_token_id",
        "hidden_act",
        "id2label",
    ):
        assert getattr(loaded.config, field) == getattr(model.config, field), field


def test_half_precision_is_written_as_such(calibrated, tmp_path: Path) -> None:
    model = calibrated().half()
    save_qdqbert(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "float16"
    dtypes = {
        name.endswith("_amax"): tensor.dtype
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    assert dtypes == {True: torch.float32, False: torch.float16}


def test_other_files_in_the_folder_stay_and_nothing_else_is_left(calibrated, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]")
    (tmp_path / ".hidden").mkdir()
    for _ in range(2):  # the second time what it wrote itself is there
        save_qdqbert(calibrated(), tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            ".hidden",
            "config.json",
            "model.safetensors",
            "qdqpatch.json",
            "vocab.txt",
        ]
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["QDQBertModel"]
    assert (tmp_path / "vocab.txt").read_text() == "[PAD]"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "qdqpatch.json"])
def test_a_users_files_of_these_names_are_kept(name: str, calibrated, tmp_path: Path) -> None:
    (tmp_path / name).write_text("5 years")
    with pytest.raises(
        CheckpointError, match=rf"did not write all that is in it: {re.escape(name)}\. Choose"
    ):
        save_qdqbert(calibrated(), tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "5 years"}


def test_the_checkpoint_that_was_loaded_is_not_overwritten(tmp_path: Path) -> None:
    folder = shutil.copytree(folder_of("QDQBertForSequenceClassification"), tmp_path / "ckpt")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match=r"config\.json, model\.safetensors"):
        save_qdqbert(load_qdqbert(folder), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_convert_wrote_there_stays_listed(calibrated, tmp_path: Path) -> None:
    with OutputFolder.open(tmp_path / "out").staged() as folder:
        for name in ("config.json", "vocab.txt"):
            (folder / name).write_text("old")
    save_qdqbert(calibrated(), tmp_path / "out")
    assert (tmp_path / "out" / "vocab.txt").read_text() == "old"
    OutputFolder.open(tmp_path / "out", force=True)  # all of it is ours


def test_files_have_the_usual_permissions(calibrated, tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    save_qdqbert(calibrated(), tmp_path)
    assert len({stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}) == 1


def test_saving_changes_nothing(calibrated, tmp_path: Path) -> None:
    model = calibrated("BertForMaskedLM")
    before = models.snapshot(model)
    save_qdqbert(model, tmp_path / "new" / "folder")
    models.assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (QDQConfig(matmuls=False), "matmul_a_input_quantizer.* and 5 more"),
        (QDQConfig(residual_adds=False), "add_local_input_quantizer.* and 5 more"),
        (QDQConfig(linears=False), r"attention\.output\.dense\._input_quantizer.* and 21 more"),
        (QDQConfig(embeddings=True), r"embeddings\.word_embeddings\._weight_quantizer"),
        (QDQConfig(pooler=True), r"bert\.pooler\.dense\._input_quantizer"),
        (QDQConfig(head=True), r"classifier\._input_quantizer"),
        (
            QDQConfig(overrides=["*.query._input_quantizer=off"]),
            r"0\.attention\.self\.query\._input_quantizer",
        ),
        (QDQConfig(overrides=["*=num_bits:8"]), r"in \*\."),
    ],
)
def test_another_placement_cannot_be_expressed(
    config: QDQConfig, named: str, float_model, tmp_path: Path
) -> None:
    model = quantize(float_model("BertForSequenceClassification"), config)
    with pytest.raises(ConfigError, match=f"{named}.*save_pretrained"):
        save_qdqbert(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_quantizer_that_was_disabled_by_hand_cannot_be_expressed(calibrated, tmp_path: Path) -> None:
    model = calibrated()
    path = "encoder.layer.0.attention.self.matmul_q_input_quantizer"
    model.get_submodule(path).disable()
    with pytest.raises(ConfigError, match=path.replace(".", r"\.")):
        save_qdqbert(model, tmp_path / "out")


def test_a_linear_that_stayed_float_cannot_be_expressed(float_model, tmp_path: Path) -> None:
    class OwnLinear(torch.nn.Linear):
        pass

    model = float_model()
    model.encoder.layer[0].attention.self.query = OwnLinear(24, 24)
    with pytest.warns(QuantizationWarning, match="OwnLinear"):
        quantize(model)
    calibrate(model, [models.inputs()])
    with pytest.raises(ConfigError, match=r"encoder\.layer\.0\.attention\.self\.query"):
        save_qdqbert(model, tmp_path / "out")


def test_a_float_model_is_refused(float_model, tmp_path: Path) -> None:
    with pytest.raises(NotQuantizedError):
        save_qdqbert(float_model(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_class_that_had_no_original_is_refused(calibrated, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="QDQBertForPreTraining.*" + ARCHITECTURES[0]):
        save_qdqbert(calibrated("BertForPreTraining"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_settings_than_the_defaults_are_told(float_model, tmp_path: Path) -> None:
    """The file has no place for them; whoever loads it with the original classes has to set them."""
    model = quantize(float_model(), QDQConfig(weight={"num_bits": 4, "axis": 0}))
    with pytest.warns(UserWarning, match=r"set the default descriptors.*weight: int4 per channel"):
        save_qdqbert(model, tmp_path)
    QuantLinear.set_default_quant_desc_weight(QuantDescriptor(num_bits=4, axis=(0)))
    save_qdqbert(model, tmp_path)


PYTHON = os.environ.get("QDQPATCH_REFERENCE_PYTHON")
ARITHMETICS = ("toolkit", "fb")
ORIGINALS = [name for name in models.CHANGES if name != "BertForPreTraining"]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[dict[str, Any], Path]]:
    """What the original classes say of every head's checkpoint; all are run by one process."""
    folders = {name: tmp_path_factory.mktemp("original") for name in ORIGINALS}
    for name, folder in folders.items():
        save_qdqbert(models.calibrated(name), folder)
        save_file(models.inputs(name), folder / "inputs.safetensors")
    command = [PYTHON, reference.FOLDER / "make.py", "--check", *folders.values()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reports = map(json.loads, done.stdout.splitlines())
    return {(name, kind): (next(reports), folder) for name, folder in folders.items() for kind in ARITHMETICS}


@pytest.mark.slow
@pytest.mark.skipif(
    PYTHON is None, reason="QDQPATCH_REFERENCE_PYTHON names no Python with the original classes"
)
@pytest.mark.parametrize("name", ORIGINALS)
def test_the_original_classes_load_what_is_saved(name: str, arithmetic: str, checked) -> None:
    model, (report, folder) = models.calibrated(name), checked[name, arithmetic]
    assert (report["class"], report["arithmetic"]) == (f"QDQ{type(model).__name__}", arithmetic)
    assert report["quantizers_with_amax"] == sum(
        isinstance(module, TensorQuantizer) for module in model.modules()
    )
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert set(report["missing_keys"]) <= tied
    assert report["unexpected_keys"] == []
    models.assert_equal(load_file(folder / f"outputs.{arithmetic}.safetensors"), models.outputs(model, name))
