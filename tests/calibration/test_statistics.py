"""What a collection pass keeps: searched as the toolkit searches, saved, and never another model's."""

import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import nvidia
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from qdqpatch import QDQConfig, calibrate, quantize
from qdqpatch.calibration import collect
from qdqpatch.calibration.histogram import Histogram
from qdqpatch.calibration.statistics import Statistics, TensorStatistics
from qdqpatch.errors import CalibrationError
from qdqpatch.patching.apply import named_quantizers

METHODS = ["max", "percentile", "mse", "entropy"]
PER_CHANNEL = QDQConfig(overrides=["*.value._input_quantizer=axis:2"])
VALUE = "encoder.layer.0.attention.self.value._input_quantizer"


def assert_same(actual: Statistics, expected: Statistics) -> None:
    assert list(actual) == list(expected)
    for path, tensor in expected.items():
        other = actual[path]
        assert np.array_equal(other.counts, tensor.counts), path
        assert other.counts.dtype == np.int64, path
        facts = [(seen.width, seen.amax, seen.levels, seen.errors) for seen in (other, tensor)]
        assert facts[0] == facts[1], path
        models.assert_equal({path: other.channel_amax}, {path: tensor.channel_amax})


# One pass, however often it is searched.


def test_searching_again_costs_no_forward_pass() -> None:
    model, passes = models.uncalibrated(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    statistics = collect(model, nvidia.batches(), compare=True)
    # The first batch and the third once; the second, held back, for each of the four operands of attention.
    assert len(passes) == 2 + 4
    for method in [*METHODS, "auto"]:
        calibrate(model, statistics, method=method)
    assert len(passes) == 2 + 4
    calibrate(model, nvidia.batches(), method="mse")
    assert len(passes) == 2 + 4 + 3


@pytest.mark.parametrize("method", METHODS)
def test_collecting_first_gives_what_calibrating_at_once_gives(method: Any) -> None:
    at_once = calibrate(models.uncalibrated(), nvidia.batches(), method=method)
    later = models.uncalibrated()
    statistics = collect(later, iter(nvidia.batches()))
    calibrate(later, statistics, method=method)
    models.assert_equal(models.ranges(later), models.ranges(at_once))
    assert statistics.ranges(method).keys() == statistics.keys()


def test_collecting_sets_no_range() -> None:
    for model in (models.uncalibrated(), models.calibrated()):
        before = models.snapshot(model)
        collect(model, nvidia.batches(), compare=True)
        models.assert_unchanged(model, before)


def test_the_order_of_the_batches_does_not_matter() -> None:
    forth = collect(models.uncalibrated(), nvidia.batches())
    assert_same(collect(models.uncalibrated(), reversed(nvidia.batches())), forth)


# Every tensor is counted once.


@pytest.fixture
def times_counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls, of = [], Histogram.of
    monkeypatch.setattr(Histogram, "of", lambda values, *hidden: (calls.append(1), of(values, *hidden))[1])
    return calls


def test_a_tensor_with_several_readers_is_counted_once(times_counted: list[int]) -> None:
    """Of a layer's 14 tensors query, key, value and residual are one; intermediate and residual another."""
    model = models.uncalibrated()
    quantizers = [path for path, _ in named_quantizers(model) if not path.endswith("_weight_quantizer")]
    assert len(quantizers) == 2 * 14
    found = collect(model, [models.inputs()])
    # Nothing else: the first layer's last sum is the second layer's input only after a LayerNorm.
    assert len(times_counted) == 2 * (14 - 3 - 1)
    layer = "encoder.layer.1.attention"
    paths = [f"{layer}.self.{name}._input_quantizer" for name in ("query", "key", "value")]
    for path in [*paths, f"{layer}.output.add_residual_input_quantizer"]:
        assert np.array_equal(found[path].counts, found[paths[0]].counts)


def double_input(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
    args[0].mul_(2)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_tensor_changed_in_place_is_counted_again(mode: Any) -> None:
    model = models.uncalibrated()
    attention = model.encoder.layer[0].attention.self
    attention.query.register_forward_hook(double_input)
    with mode():
        found = collect(model, [models.inputs()])
    prefix = "encoder.layer.0.attention.self"
    query, key = (found[f"{prefix}.{name}._input_quantizer"] for name in ("query", "key"))
    assert key.amax == 2 * query.amax


def test_another_tensor_of_the_same_memory_is_counted_again(times_counted: list[int]) -> None:
    """Tensors die between layers, and another one gets the same id."""
    model = models.uncalibrated()
    collect(model, [models.inputs(seed=seed) for seed in range(4)])
    alone = [collect(models.uncalibrated(), [models.inputs(seed=seed)]) for seed in range(4)]
    together = collect(model, [models.inputs(seed=seed) for seed in range(4)])
    for path, tensor in together.items():
        assert tensor.amax == max(one[path].amax for one in alone), path
        assert tensor.counts.sum() == sum(one[path].counts.sum() for one in alone), path


# Files.


@pytest.mark.parametrize("config", [QDQConfig(), PER_CHANNEL], ids=["per tensor", "per channel"])
def test_a_file_brings_everything_back(config: QDQConfig, tmp_path: Path) -> None:
    model = quantize(models.float_model(), config)
    statistics = collect(model, nvidia.batches(), compare=True)
    statistics.save(tmp_path / "statistics.safetensors")
    loaded = Statistics.load(str(tmp_path / "statistics.safetensors"))
    assert_same(loaded, statistics)
    for method in [*METHODS, "auto"]:
        models.assert_equal(loaded.ranges(method), statistics.ranges(method))


def test_statistics_of_weights_alone_are_none_and_can_be_saved(tmp_path: Path) -> None:
    config = QDQConfig(overrides=["*input_quantizer=off"])
    model = quantize(models.float_model(), config)
    statistics = collect(model, nvidia.batches())
    statistics.save(tmp_path / "none")
    assert len(Statistics.load(tmp_path / "none")) == 0
    calibrate(model, statistics)
    enabled = [path for path, quantizer in named_quantizers(model) if quantizer.is_enabled]
    assert enabled
    assert all(models.ranges(model)[path] is not None for path in enabled)


DAMAGES: dict[str, Any] = {
    "metadata": lambda facts, tensors: facts.pop("quantizers"),
    "JSON": lambda facts, tensors: facts.update(quantizers="{"),
    "kind": lambda facts, tensors: facts.update(format="pt"),
    "counts": lambda facts, tensors: tensors.update(other=tensors.pop("counts")),
    "rows": lambda facts, tensors: tensors.update(counts=tensors["counts"][:1].clone()),
    "fields": lambda facts, tensors: facts.update(quantizers=json.dumps({"a": {"row": 0}})),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_named(damage: Any, tmp_path: Path) -> None:
    file = tmp_path / "damaged.safetensors"
    collect(models.uncalibrated(), [models.inputs()]).save(file)
    with safe_open(file, "pt") as stored:
        facts, tensors = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    damage(facts, tensors)
    save_file(tensors, file, facts)
    with pytest.raises(CalibrationError, match=r"damaged\.safetensors"):
        Statistics.load(file)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"], ids=["missing", "empty", "other"])
def test_a_file_that_is_none_is_named(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CalibrationError, match=r"file\.safetensors"):
        Statistics.load(file)


def test_a_file_that_ends_early_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    collect(models.uncalibrated(), [models.inputs()]).save(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CalibrationError, match=r"file\.safetensors"):
        Statistics.load(file)


# Statistics of another model.

OTHERS: dict[str, Any] = {
    "more layers": (lambda: quantize(models.build(num_hidden_layers=3)), r"encoder\.layer\.2\."),
    "fewer": (lambda: quantize(models.build(num_hidden_layers=1)), r"encoder\.layer\.1\."),
    "another head": (lambda: models.uncalibrated("BertForMaskedLM"), r"encoder\.layer\."),
    "one off": (
        lambda: with_override("*.layer.1.*.query._input_quantizer=off"),
        r"layer\.1\..*query\._input",
    ),
    "bits": (
        lambda: with_override("*.layer.1.*.query._input_quantizer=num_bits:4"),
        r"layer\.1\..*query\._in",
    ),
    "axis": (
        lambda: quantize(models.float_model(), PER_CHANNEL),
        r"layer\.0\.attention\.self\.value\._input",
    ),
}


def with_override(override: str) -> nn.Module:
    return quantize(models.float_model(), QDQConfig(overrides=[override]))


@pytest.mark.parametrize(("make", "named"), OTHERS.values(), ids=OTHERS)
def test_statistics_of_another_model_are_refused(make: Any, named: str) -> None:
    statistics, model = collect(models.uncalibrated(), nvidia.batches()), make()
    before = models.snapshot(model)
    with pytest.raises(CalibrationError, match=named):
        calibrate(model, statistics, method="max")
    models.assert_unchanged(model, before)


def test_auto_needs_statistics_that_were_compared() -> None:
    model = models.calibrated()
    before = models.snapshot(model)
    with pytest.raises(CalibrationError, match="compare=True"):
        calibrate(model, collect(model, nvidia.batches()), method="auto")
    models.assert_unchanged(model, before)


# Ranges per channel, and dtypes.


@pytest.mark.parametrize("method", METHODS)
def test_a_quantizer_with_a_range_per_channel_gets_its_maxima(method: Any) -> None:
    model, seen = quantize(models.float_model(), PER_CHANNEL), []
    value = model.encoder.layer[0].attention.self.value
    value.register_forward_hook(lambda module, args, output: seen.append(args[0].abs().amax((0, 1))))
    calibrate(model, nvidia.batches(), method=method, padding_aware=False)
    assert torch.equal(value._input_quantizer.amax, torch.stack(seen).amax(0)[None, None])
    models.outputs(model)


def test_nan_in_a_channel_is_named() -> None:
    config = QDQConfig(overrides=["*=off", "*.value._input_quantizer=on", "*.value._input_quantizer=axis:2"])
    model = quantize(models.float_model(), config)
    with torch.no_grad():
        model.embeddings.LayerNorm.bias[0] = float("inf")
    with pytest.raises(CalibrationError, match=r"layer\.0\..*value\._input_quantizer saw NaN or infinity"):
        collect(model, nvidia.batches())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_dtypes_have_fp32_ranges(dtype: torch.dtype, method: Any) -> None:
    model = calibrate(models.uncalibrated().to(dtype), nvidia.batches(), method=method)
    for path, amax in models.ranges(model).items():
        assert amax.dtype == torch.float32, path
        assert (amax.isfinite() & (amax > 0)).all(), path
    assert {output.dtype for output in models.outputs(model).values()} == {dtype}


@pytest.mark.parametrize("method", METHODS)
def test_under_autocast_ranges_are_fp32_and_near_those_without(method: Any) -> None:
    expected = collect(models.uncalibrated(), nvidia.batches())
    model = models.uncalibrated()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = collect(model, nvidia.batches())
        calibrate(model, found, method=method)
    for path, amax in models.ranges(model).items():
        assert amax.dtype == torch.float32, path
        assert (amax.isfinite() & (amax > 0)).all(), path
    for path, tensor in expected.items():
        # bf16 has 8 bits, so its rounding moves a magnitude by 2^-9; a few of them add up along two layers.
        assert abs(found[path].amax - tensor.amax) < 2.0**-4 * tensor.amax, path


def test_statistics_are_those_of_the_largest_magnitude() -> None:
    quantizer = models.uncalibrated().encoder.layer[0].attention.self.query._input_quantizer
    statistics = TensorStatistics.of(Histogram.of(torch.tensor([-3.3, 1.0])), None, quantizer)
    assert statistics.amax == float(torch.tensor(3.3))
    assert statistics.levels == 127
    assert statistics.width == 2.0**-10
    assert np.flatnonzero(statistics.counts).tolist() == [1024, int(3.3 * 1024)]
