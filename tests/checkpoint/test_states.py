"""States that a quantized model can get into, and what is saved and said of them."""

from pathlib import Path

import models
import pytest
import torch
from damages import HEAD, INPUT
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from qdqpatch import QDQConfig, calibrate, quantize, save_qdqbert
from qdqpatch.errors import CalibrationError, CheckpointError, NotQuantizedError, QuantizationWarning
from qdqpatch.training import train_ranges


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


def test_half_precision_state_leaves_ranges_in_fp32(calibrated, uncalibrated) -> None:
    half = {name: tensor.half() for name, tensor in calibrated().state_dict().items()}
    for model in (calibrated(), uncalibrated()):
        model.load_state_dict(half, assign=True)
        assert {amax.dtype for amax in models.ranges(model).values() if amax is not None} == {torch.float32}


def test_dequantizing_to_another_dtype(calibrated) -> None:
    assert calibrated().dequantize(dtype=torch.bfloat16).dtype == torch.bfloat16


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
