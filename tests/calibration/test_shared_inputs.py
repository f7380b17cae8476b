"""One range for all quantizers that read one tensor: who they are, which range, and one node in the file."""

from pathlib import Path

import models
import onnx
import pytest
import torch
from transformers import PreTrainedModel

import qdqpatch
from qdqpatch.calibration import Statistics, collect, fuse_inputs
from qdqpatch.calibration.shared_inputs import readers
from qdqpatch.errors import CalibrationError, ConfigError, NotQuantizedError
from qdqpatch.patching.apply import named_quantizers

LAYER = "encoder.layer.0"
ATTENTION = (
    *(f"{LAYER}.attention.self.{name}._input_quantizer" for name in ("query", "key", "value")),
    f"{LAYER}.attention.output.add_residual_input_quantizer",
)
FEED_FORWARD = (
    f"{LAYER}.intermediate.dense._input_quantizer",
    f"{LAYER}.output.add_residual_input_quantizer",
)


def with_different_ranges() -> PreTrainedModel:
    model = models.calibrated()
    for number, (_, quantizer) in enumerate(named_quantizers(model)):
        if quantizer.amax is not None and not quantizer.amax.dim():
            quantizer.amax = 1.0 + number
    return model


def ranges(model: PreTrainedModel, paths: tuple[str, ...]) -> list[float]:
    return [model.get_submodule(path).amax.item() for path in paths]


def test_readers_are_those_of_a_layernorm() -> None:
    groups = readers(models.calibrated(), models.inputs())
    assert groups[:2] == [ATTENTION, FEED_FORWARD]
    assert len(groups) == 4  # of two layers


def test_the_largest_range_is_taken_and_nothing_else_changes() -> None:
    model = with_different_ranges()
    before = {path: quantizer.amax for path, quantizer in named_quantizers(model)}
    expected = {path: max(ranges(model, group)) for group in (ATTENTION, FEED_FORWARD) for path in group}
    assert fuse_inputs(model, [models.inputs()]) is model
    for path, quantizer in named_quantizers(model):
        if path in expected:
            assert quantizer.amax.item() == expected[path]
        elif ".layer.0." in path:
            assert torch.equal(quantizer.amax, before[path])
    first, second = (model.get_submodule(path) for path in ATTENTION[:2])
    assert first.amax.data_ptr() != second.amax.data_ptr()


def test_with_errors_the_best_for_all_is_taken() -> None:
    model = models.uncalibrated()
    data = [models.inputs(seed=seed) for seed in (2, 3)]
    found = collect(model, data, compare=True)
    errors = {path: {1.0: 4.0, 2.0: 1.0, 3.0: 2.0} for path in found}
    errors[ATTENTION[3]] = {1.0: 1.0, 2.0: 100.0, 3.0: 2.0}  # products: 64, 100, 16
    qdqpatch.calibrate(model, found.with_errors(errors))
    assert ranges(model, ATTENTION) == [2.0, 2.0, 2.0, 1.0]
    fuse_inputs(model, data, found.with_errors(errors))
    assert ranges(model, ATTENTION) == [3.0] * 4
    fuse_inputs(with_different_ranges(), data, Statistics({}))  # of another model: the largest


def test_it_is_a_step_of_ptq() -> None:
    data = [models.inputs(seed=seed) for seed in (2, 3)]
    model = qdqpatch.ptq(models.float_model(), data, fuse_inputs=True)
    expected = qdqpatch.quantize(models.float_model())
    found = collect(expected, data, compare=True)
    fuse_inputs(qdqpatch.calibrate(expected, found), data, found)
    models.assert_equal(dict(model.state_dict()), dict(expected.state_dict()))


def test_the_file_has_one_quantizer_for_them(tmp_path: Path) -> None:
    model = fuse_inputs(with_different_ranges(), [models.inputs()])
    file = qdqpatch.export(model, tmp_path / "out", "tensorrt", dtype="float32", check=False).file
    nodes = [node for node in onnx.load(file).graph.node if node.op_type == "QuantizeLinear"]
    # Of the 14 quantizers of a layer, three read what query's does, and one what the intermediate's does.
    assert len(nodes) == 2 * (14 - 3 - 1)
    assert len({node.input[0] for node in nodes}) == len(nodes)


def test_what_cannot_be_fused_leaves_the_ranges() -> None:
    batch = models.inputs()
    for model, given, error, message in (
        (models.float_model(), [batch], NotQuantizedError, "is a float model"),
        (models.calibrated(), [], CalibrationError, "no calibration batch"),
        (models.uncalibrated(), [batch], CalibrationError, "has no range"),
    ):
        models.assert_refused(lambda model, given=given: fuse_inputs(model, given), model, error, message)
    model = qdqpatch.quantize(
        models.float_model(), qdqpatch.QDQConfig(overrides={"*query._input_quantizer": {"amax": 0.5}})
    )
    qdqpatch.calibrate(model, [batch], "max")
    with pytest.raises(ConfigError, match=r"fixes the range of .*query\._input_quantizer at 0\.5"):
        fuse_inputs(model, [batch])
