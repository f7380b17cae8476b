"""Adjusted ranges: those that `quant_trainer.py` of the QDQBERT example would set, and nothing else."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from adjusted import PER_TENSOR, check_ranges, check_saving, model_of, train
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch import dequantize
from qdqpatch.calibration import clip_gelu, expand_amax, fuse_qkv, recalibrate_weights
from qdqpatch.calibration.fusing import PROJECTIONS
from qdqpatch.errors import CalibrationError, ConfigError, NotQuantizedError
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import named_quantizers

FUNCTIONS: dict[str, Callable[[PreTrainedModel], PreTrainedModel]] = {
    "fuse_qkv": fuse_qkv,
    "clip_gelu": lambda model: clip_gelu(model, 0.5),
    "recalibrate_weights": recalibrate_weights,
    "expand_amax": expand_amax,
}


# fuse_qkv.


def fused(before: dict[str, Tensor | None], names: list[str]) -> dict[str, Tensor]:
    """Return what `quant_trainer.fuse_qkv` sets, which goes by the names of the modules."""
    owners = {path.removesuffix(names[0]) for path in before if path.endswith(f".attention.self.{names[0]}")}
    assert len(owners) == 2
    expected = {}
    for owner in owners:
        group = [owner + name for name in names]
        largest = max(before[path].item() for path in group)
        expected |= {path: torch.tensor(largest) for path in group}
    return expected


OPERANDS = [f"matmul_{operand}_input_quantizer" for operand in "qkv"]
WEIGHTS = [f"{name}._weight_quantizer" for name in ("query", "key", "value")]


def test_fuse_qkv_takes_the_largest_range_of_the_three(any_head: str) -> None:
    """Also of a decoder with cross-attention, which is left alone."""
    model = model_of(any_head)
    before = models.ranges(model)
    assert fuse_qkv(model) is model
    check_ranges(model, before, fused(before, OPERANDS))


def test_fuse_qkv_takes_the_largest_range_of_per_tensor_weights() -> None:
    model = model_of(config=PER_TENSOR)
    before = models.ranges(model)
    fuse_qkv(model)
    check_ranges(model, before, fused(before, OPERANDS) | fused(before, WEIGHTS))


def test_fuse_qkv_finds_weights_without_matmuls() -> None:
    model = model_of(config={**PER_TENSOR, "matmuls": False})
    before = models.ranges(model)
    fuse_qkv(model)
    check_ranges(model, before, fused(before, WEIGHTS))


class Attention(nn.Module):
    """An attention module of another architecture, as far as it matters."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        for number, name in enumerate(names, start=1):
            linear = QuantLinear(4, 4)
            linear._weight_quantizer = TensorQuantizer()
            linear._weight_quantizer.load_range(torch.tensor(float(number)))
            self.add_module(name, linear)


@pytest.mark.parametrize("names", PROJECTIONS, ids=str)
@pytest.mark.parametrize("path", ["self_attn", "attention", "crossattention", "encoder_attn"])
def test_fuse_qkv_knows_the_names_of_other_architectures(names: tuple[str, ...], path: str) -> None:
    model = nn.ModuleDict({"self_attn": Attention(names), path: Attention(names)})
    fuse_qkv(model)
    largest = 1.0 if path in ("crossattention", "encoder_attn") else 3.0
    assert model[path].get_submodule(names[0])._weight_quantizer.amax == largest
    assert model["self_attn"].get_submodule(names[0])._weight_quantizer.amax == 3.0


def test_fused_ranges_are_tensors_of_their_own() -> None:
    model = fuse_qkv(model_of(config=PER_TENSOR))
    addresses = [quantizer.amax.data_ptr() for _, quantizer in named_quantizers(model)]
    assert len(set(addresses)) == len(addresses)


def test_fuse_qkv_leaves_out_what_is_off() -> None:
    """A quantizer that is off neither gets a range nor needs one."""
    model = model_of(config={"overrides": {"*.matmul_v_*": False}})
    before = models.ranges(model)
    fuse_qkv(model)
    check_ranges(model, before, fused(before, OPERANDS[:2]))


@pytest.mark.parametrize("config", [{"matmuls": False}, {"overrides": {"*matmul_[qk]*": False}}])
def test_fuse_qkv_refuses_when_there_is_nothing_to_fuse(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="nothing to fuse"):
        fuse_qkv(model_of(config=config))


def test_fuse_qkv_refuses_ranges_per_channel() -> None:
    model = model_of(config={"overrides": {"*.layer.1.*matmul_k*": {"axis": 1}}})
    before = models.ranges(model)
    with pytest.raises(ConfigError, match=r"layer\.1\.attention\.self\.matmul_k_input_quantizer has a range"):
        fuse_qkv(model)
    models.assert_equal(models.ranges(model), before)


# clip_gelu.


def clipped(before: dict[str, Tensor | None], maximum: float) -> dict[str, Tensor]:
    """Return what `quant_trainer.clip_gelu` sets, which goes by the names of the modules."""
    pattern = r"(?<!attention)\.output\.dense\._input_quantizer$"
    paths = [path for path in before if re.search(pattern, path)]
    assert len(paths) == 2
    return {path: before[path].clamp(max=maximum) for path in paths}


@pytest.mark.parametrize("intermediate_size", [40, 24, 12])
def test_clip_gelu_clips_what_reads_the_activation(any_head: str, intermediate_size: int) -> None:
    """Not poolers and heads, and whatever the width, even where every Linear has the same shape."""
    model = model_of(any_head, models.PARTS_ON, intermediate_size=intermediate_size)
    before = models.ranges(model)
    assert clip_gelu(model, 0.25) is model
    check_ranges(model, before, clipped(before, 0.25))


class Layer(nn.Module):
    """A layer of another architecture, as far as it matters: attention, then a feed-forward."""

    def __init__(self, *sizes: tuple[int, int]) -> None:
        super().__init__()
        self.linears = nn.ModuleDict({f"fc{index}": QuantLinear(*size) for index, size in enumerate(sizes)})
        for linear in self.linears.values():
            linear._input_quantizer.load_range(torch.tensor(9.0))


def test_clip_gelu_knows_the_feed_forward_by_its_sizes() -> None:
    layers = nn.ModuleList([Layer((4, 4), (4, 8), (8, 4)), Layer((4, 8), (8, 4), (4, 4)), Layer((4, 4))])
    model = nn.ModuleDict({"layers": layers, "head": Layer((4, 8), (8, 4))})
    clip_gelu(model, 1.0)
    assert [path for path, amax in models.ranges(model).items() if amax is not None and amax == 1.0] == [
        "layers.0.linears.fc2._input_quantizer"
    ]


def test_clip_gelu_leaves_smaller_ranges() -> None:
    model = model_of()
    paths = list(clipped(models.ranges(model), 1.0))
    for path, amax in zip(paths, (0.3, 0.7), strict=True):
        model.get_submodule(path).load_range(torch.tensor(amax))
    clip_gelu(model, 0.5)
    assert [models.ranges(model)[path] for path in paths] == [torch.tensor(0.3), torch.tensor(0.5)]
    before = models.ranges(model)
    models.assert_equal(models.ranges(clip_gelu(model, 1000)), before)


@pytest.mark.parametrize("maximum", [0, -1.0, float("nan"), float("inf"), True, "6", None])
def test_clip_gelu_refuses_what_is_no_positive_number(maximum: Any, calibrated) -> None:
    model = calibrated()
    before = models.ranges(model)
    with pytest.raises(ConfigError, match="must be a positive number up to"):
        clip_gelu(model, maximum)
    models.assert_equal(models.ranges(model), before)


@pytest.mark.parametrize(
    "config", [{"linears": False}, {"overrides": {"*.layer.?.output.dense._input_quantizer": False}}]
)
def test_clip_gelu_refuses_when_there_is_nothing_to_clip(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="nothing to clip"):
        clip_gelu(model_of(config=config), 1.0)


# All of them.


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_float_model_is_refused(function: Any, float_model, calibrated) -> None:
    for model in (float_model(), dequantize(calibrated())):
        with pytest.raises(NotQuantizedError, match=r"qdqpatch\.quantize"):
            function(model)


@pytest.mark.parametrize("function", [recalibrate_weights, expand_amax])
def test_a_model_without_quantized_weights_is_refused(function: Any) -> None:
    with pytest.raises(ConfigError, match="no quantized weight"):
        function(model_of(config={"linears": False}))


MISSING = {
    "fuse_qkv": "encoder.layer.1.attention.self.matmul_v_input_quantizer",
    "clip_gelu": "encoder.layer.1.output.dense._input_quantizer",
    "expand_amax": "encoder.layer.1.output.dense._weight_quantizer",
}


@pytest.mark.parametrize(("name", "path"), MISSING.items(), ids=MISSING)
def test_a_missing_range_is_named_before_anything_changes(name: str, path: str) -> None:
    model = model_of(config=PER_TENSOR)
    del model.get_submodule(path)._amax
    before = models.snapshot(model)
    with pytest.raises(CalibrationError, match=rf"{re.escape(path)} has no range yet.*qdqpatch\.calibrate"):
        FUNCTIONS[name](model)
    models.assert_unchanged(model, before)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_quantizers_that_are_off_are_left_alone(function: Any) -> None:
    model = model_of(config=PER_TENSOR)
    for path, quantizer in named_quantizers(model):
        if ".layer.0." in path:
            quantizer.disable()
    before = models.ranges(model)
    function(model)
    after = models.ranges(model)
    models.assert_equal(
        *({p: a for p, a in ranges.items() if ".layer.0." in p} for ranges in (after, before))
    )
    assert any(after[path].shape != amax.shape or after[path] != amax for path, amax in before.items())


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("config", [{}, PER_TENSOR], ids=["per channel", "per tensor"])
def test_adjusting_changes_nothing_but_ranges(function: Any, config: dict[str, Any]) -> None:
    model = model_of(config=config).train()
    train(model)
    before = models.snapshot(model)
    after = models.snapshot(function(model))
    weights = [
        {name: tensor for name, tensor in state.pop("tensors").items() if not name.endswith("_amax")}
        for state in (after, before)
    ]
    models.assert_equal(*weights)
    assert after.pop("config")[0] == before.pop("config")[0]
    assert after == before


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adjusted_ranges_are_fp32_and_save(function: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    model = function(model_of(config=PER_TENSOR).to(dtype))
    assert {amax.dtype for amax in models.ranges(model).values()} == {torch.float32}
    if dtype == torch.float32:
        check_saving(model, tmp_path)


def test_parts_of_a_model_can_be_adjusted(calibrated) -> None:
    """What a bare encoder gets is what it gets as a part of the whole."""
    whole, other = calibrated("BertForMaskedLM"), calibrated("BertForMaskedLM")
    for function in (fuse_qkv, recalibrate_weights, FUNCTIONS["clip_gelu"]):
        function(whole)
        function(other.bert)
    models.assert_equal(models.ranges(whole), models.ranges(other))
