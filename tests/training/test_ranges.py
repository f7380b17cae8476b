"""`train_ranges`, `freeze_ranges` and `parameter_groups` on whole models."""

from pathlib import Path

import models
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import qdqpatch
from qdqpatch.errors import CalibrationError, ConfigError, NotQuantizedError, no_range
from qdqpatch.nn.learned import LSQQuantizer, PACTQuantizer, WeightTrackingQuantizer
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import named_quantizers
from qdqpatch.training import freeze_ranges, parameter_groups, train_ranges

NAME = "BertForSequenceClassification"


def step(model: PreTrainedModel, lr: float = 1e-2) -> None:
    """Take one step of an optimizer."""
    model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model, lr), eps=1e-20)
    model(**models.inputs(NAME), **models.labels(NAME)).loss.backward()
    optimizer.step()


def weight_ranges(model: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the range of each weight's quantizer, and that of the weight."""
    linears = [module for module in model.modules() if hasattr(module, "_weight_quantizer")]
    return [
        (linear._weight_quantizer.amax, linear.weight.detach().abs().amax(1, keepdim=True))
        for linear in linears
    ]


def test_weights_whose_channels_have_one_range_are_followed_by_channel(tmp_path: Path) -> None:
    model = models.calibrated(NAME)
    for module in model.modules():
        if hasattr(module, "_weight_quantizer"):
            module._weight_quantizer._amax = module.weight.detach().abs().max()
    model.save_pretrained(tmp_path)
    model = train_ranges(AutoModelForSequenceClassification.from_pretrained(tmp_path))
    model.train()
    model(**models.inputs(NAME))
    for amax, expected in weight_ranges(model):
        assert torch.equal(amax, expected)


@pytest.mark.parametrize(
    ("activations", "cls"), [("lsq", LSQQuantizer), ("clip", PACTQuantizer), ("frozen", TensorQuantizer)]
)
@pytest.mark.parametrize(
    ("weights", "of_weights"), [("follow", WeightTrackingQuantizer), ("frozen", TensorQuantizer)]
)
def test_every_quantizer_is_of_its_class(activations, cls, weights, of_weights) -> None:
    model = models.calibrated(NAME)
    before = models.outputs(model, NAME)
    assert train_ranges(model, activations, weights) is model
    for path, quantizer in named_quantizers(model):
        assert type(quantizer) is (of_weights if path.endswith("_weight_quantizer") else cls), path
    models.assert_equal(models.outputs(model, NAME), before)  # max ranges of weights are their own
    ranges = models.ranges(model)
    step(model)
    for path, amax in models.ranges(model).items():
        moves = activations != "frozen" and not path.endswith("_weight_quantizer")
        # A range that clips nothing has no gradient by what it clips.
        if activations != "clip":
            assert torch.equal(amax, ranges[path]) is not moves, path
    freeze_ranges(model)
    assert {type(quantizer) for _, quantizer in named_quantizers(model)} == {TensorQuantizer}
    if weights == "follow":
        assert all(torch.equal(amax, own) for amax, own in weight_ranges(model))


def test_clipped_values_move_a_range() -> None:
    model = models.calibrated(NAME)
    for _, quantizer in named_quantizers(model):
        if quantizer.amax.dim() == 0:
            quantizer.amax = 0.5 * quantizer.amax
    train_ranges(model, "clip")
    ranges = models.ranges(model)
    step(model)
    moved = [not torch.equal(amax, ranges[path]) for path, amax in models.ranges(model).items()]
    assert sum(moved) > len(moved) // 3


def test_a_saved_model_has_the_ranges_of_the_weights_after_the_last_step(tmp_path: Path) -> None:
    model = train_ranges(models.calibrated(NAME))
    step(model)
    assert not all(torch.equal(amax, own) for amax, own in weight_ranges(model))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert all(torch.equal(amax, own) for amax, own in weight_ranges(loaded))
    assert {type(quantizer) for _, quantizer in named_quantizers(loaded)} == {TensorQuantizer}
    models.assert_equal(models.outputs(loaded, NAME), models.outputs(model.eval(), NAME))


def test_parameter_groups_hold_every_parameter_once() -> None:
    model = train_ranges(models.calibrated(NAME))
    model.classifier.bias.requires_grad_(False)
    matrices, rest, ranges = parameter_groups(model, lr=1e-3, weight_decay=0.1)
    assert [(group["lr"], group["weight_decay"]) for group in (matrices, rest)] == [(1e-3, 0.1), (1e-3, 0.0)]
    assert (ranges["lr"], ranges["weight_decay"]) == (0.127, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = [names[id(parameter)] for group in (matrices, rest, ranges) for parameter in group["params"]]
    assert sorted(found) == sorted(names.values())
    assert all(names[id(parameter)].endswith("_amax") for parameter in ranges["params"])
    assert all(parameter.dim() == 2 for parameter in matrices["params"])
    assert parameter_groups(model, 1e-3, range_lr=5.0)[2]["lr"] == 5
    assert len(parameter_groups(freeze_ranges(model), 1e-3)) == 2


def refused(model: PreTrainedModel, error: type[Exception], message: str, *choices: str) -> None:
    before = models.snapshot(model)
    with pytest.raises(error) as raised:
        train_ranges(model, *choices)
    assert str(raised.value) == message
    models.assert_unchanged(model, before)


def test_what_cannot_be_trained_is_refused_and_nothing_is_changed() -> None:
    first = "bert.encoder.layer.0.attention.self.query._input_quantizer"
    refused(
        models.uncalibrated(NAME),
        CalibrationError,
        no_range([first]),
    )
    refused(
        models.calibrated(NAME),
        ConfigError,
        "activations must be one of frozen, lsq, clip, not 'LSQ'.",
        "LSQ",
    )
    refused(
        models.calibrated(NAME), ConfigError, "weights must be one of frozen, follow, not 'no'.", "lsq", "no"
    )
    refused(
        models.float_model(NAME),
        NotQuantizedError,
        "This BertForSequenceClassification is a float model: call qdqpatch.quantize(model) first.",
    )
    config = qdqpatch.QDQConfig(overrides={"*.layer.1.*query._input_quantizer": {"axis": 2}})
    model = qdqpatch.quantize(models.build(NAME), config)
    qdqpatch.calibrate(model, [models.inputs(NAME)])
    refused(
        model,
        ConfigError,
        "bert.encoder.layer.1.attention.self.query._input_quantizer has a range for each channel; those of "
        "activations are learned one per tensor. Train with activations='frozen', or "
        "quantize it with axis=None.",
    )


def test_quantizers_that_are_off_stay_off() -> None:
    config = qdqpatch.QDQConfig(overrides={"*.layer.0.output.dense._input_quantizer": False})
    model = qdqpatch.calibrate(qdqpatch.quantize(models.build(NAME), config), [models.inputs(NAME)])
    train_ranges(model)
    off = model.bert.encoder.layer[0].output.dense._input_quantizer
    assert type(off) is TensorQuantizer
    assert not off.is_enabled


@pytest.mark.slow
def test_a_model_whose_ranges_were_learned_exports(tmp_path: Path) -> None:
    model = train_ranges(models.calibrated(NAME))
    step(model)
    result = qdqpatch.export(
        model.eval(), tmp_path / "out", "onnxruntime", shape=(2, 8), batches=[models.inputs(NAME)]
    )
    assert result.file.is_file()
    assert {type(quantizer) for _, quantizer in named_quantizers(model)} == {
        LSQQuantizer,
        WeightTrackingQuantizer,
    }
