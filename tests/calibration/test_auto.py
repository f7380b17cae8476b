"""The method "auto": for each quantizer the range that best preserves what its operation computes."""

import itertools
from typing import Any

import models
import numpy as np
import pytest
import torch
from errors_by_hand import errors_by_hand
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch import QDQConfig, calibrate, quantize
from qdqpatch.calibration import collect, observing
from qdqpatch.calibration.observing import first_rows
from qdqpatch.errors import CalibrationError
from qdqpatch.patching.apply import named_quantizers

CANDIDATES = [("max", 50.0), ("mse", 50.0), ("entropy", 50.0)] + [
    ("percentile", share) for share in (99.0, 99.9, 99.99, 99.999)
]
LAYER = "encoder.layer.0"
QUERY = f"{LAYER}.attention.self.query"


def batches(count: int, name: str = "BertModel") -> list[dict[str, Tensor]]:
    return [models.inputs(name, seed) for seed in range(21, 21 + count)]


def one_layer(*overrides: str, name: str = "BertModel", **changes: Any) -> PreTrainedModel:
    model = models.build(name, num_hidden_layers=1, **changes)
    return quantize(model, QDQConfig(overrides=list(overrides)))


def only(path: str) -> tuple[str, str]:
    return "*_input_quantizer=off", f"*{path}=on"


@pytest.mark.parametrize("padding", [True, False])
def test_the_range_with_the_smallest_error_is_chosen(padding: bool) -> None:
    model, data = one_layer(), batches(11)
    statistics = collect(model, data, padding_aware=padding, compare=True)
    tried = [statistics.ranges(method, share) for method, share in CANDIDATES]  # type: ignore[arg-type]
    chosen = models.ranges(calibrate(model, statistics, method="auto"))
    assert len(statistics) == 14
    for path, tensor in statistics.items():
        amaxes = list(tensor.errors)
        assert amaxes == sorted(amaxes), path
        assert {float(ranges[path]) for ranges in tried} <= set(amaxes), path
        assert all(high / low < 2**0.5 + 1e-6 for low, high in itertools.pairwise(amaxes)), path
        errors = errors_by_hand(one_layer(), path, amaxes, [data[1], data[9]], padding, chosen)
        # The same float64 terms in another order.
        assert list(tensor.errors.values()) == pytest.approx(errors, rel=1e-12), path
        assert float(chosen[path]) == amaxes[int(np.argmin(errors))], path
    methods = {
        index for path in statistics for index, ranges in enumerate(tried) if ranges[path] == chosen[path]
    }
    assert len(methods) > 1, "the same method for every quantizer would be no choice"


@pytest.mark.parametrize(("weight", "kept"), [(0.0, False), (3.0, True)])
def test_an_outlier_is_kept_if_the_operation_needs_it(weight: float, kept: bool) -> None:
    """One feature of one token is 30: a weight of 0 makes nothing of it, one of 3 most of the result."""
    model = one_layer(*only("query._input_quantizer"))
    with torch.no_grad():
        model.get_submodule(QUERY).weight[:, 3] = weight
    outlier = torch.zeros(2, 8, 24)
    outlier[0, 0, 3] = 30
    model.embeddings.register_forward_hook(lambda module, args, output: output + outlier)
    calibrate(model, batches(3), method="auto")
    amax = float(model.get_submodule(QUERY)._input_quantizer.amax)
    assert amax > 27 if kept else amax < 10
    maximum = calibrate(model, batches(3), method="max").get_submodule(QUERY)._input_quantizer.amax
    assert 27 < maximum < 33


@pytest.mark.parametrize(
    ("count", "held"), [(1, [0]), (2, [1]), (8, [1]), (9, [1]), (10, [1, 9]), (18, [1, 9, 17])]
)
def test_one_batch_in_eight_is_held_back(count: int, held: list[int]) -> None:
    model, data = one_layer(*only("query._input_quantizer")), batches(count)
    statistics = collect(model, data, compare=True)
    counted = [data[0]] if count == 1 else [data[i] for i in range(count) if i not in held]
    tokens = sum(int(batch["attention_mask"].sum()) for batch in counted)
    (path, tensor), *_ = statistics.items()
    assert tensor.counts.sum() == 24 * tokens
    expected = errors_by_hand(one_layer(), path, list(tensor.errors), [data[i] for i in held], padding=True)
    assert list(tensor.errors.values()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "tokens", "rows"),
    [
        *(("BertModel", 1, 1), ("BertModel", 15, 1), ("BertModel", 16, 2), ("BertModel", 999, 2)),
        *(("BertForMultipleChoice", 47, 1), ("BertForMultipleChoice", 48, 2), (models.CROSS, 15, 1)),
    ],
)
def test_only_the_first_rows_are_compared_on(name: str, tokens: int, rows: int) -> None:
    batch = models.inputs(name) | {"labels": torch.tensor([3, 4]), "output_attentions": False}
    found = first_rows(batch, tokens)
    assert found.keys() == batch.keys()
    assert found.pop("output_attentions") is False
    for key, tensor in found.items():
        assert torch.equal(tensor, batch[key][:rows]), key


@pytest.mark.parametrize("ids", [{}, {"input_ids": None}], ids=["left out", "None"])
def test_rows_of_embeddings_are_cut_too(ids: dict[str, Any]) -> None:
    batch = ids | {"inputs_embeds": torch.ones(4, 3, 24), "attention_mask": torch.ones(4, 3)}
    assert {len(row) for row in first_rows(batch, 7).values() if row is not None} == {2}


def test_a_batch_that_is_held_back_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "COMPARED_TOKENS", 8)
    model, data = one_layer(*only("query._input_quantizer")), batches(3)
    ((path, tensor),) = collect(model, data, compare=True).items()
    cut = {name: tensor[:1] for name, tensor in data[1].items()}
    expected = errors_by_hand(one_layer(), path, list(tensor.errors), [cut], padding=True)
    assert list(tensor.errors.values()) == pytest.approx(expected, rel=1e-12)


def test_ranges_are_compared_on_768_positions() -> None:
    """Of 100 rows of 8 tokens the first 96."""
    model, data = one_layer(*only("query._input_quantizer")), batches(1)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 48, (100, 8), generator=generator)
    tokens[-4:] = 0
    data.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    ((path, tensor),) = collect(model, data, compare=True).items()
    for rows, same in ((95, False), (96, True), (97, False)):
        cut = {name: part[:rows] for name, part in data[1].items()}
        by_hand = errors_by_hand(one_layer(), path, list(tensor.errors), [cut], padding=True)
        assert (list(tensor.errors.values()) == pytest.approx(by_hand, rel=1e-9)) == same, rows


@pytest.mark.parametrize("path", ["output.add_local_input_quantizer", "output.add_residual_input_quantizer"])
def test_an_add_is_compared_without_running_its_module_again(path: str) -> None:
    model, calls = one_layer(*only(f"0.{path}")), []
    dense = model.get_submodule(f"{LAYER}.output.dense")
    dense.register_forward_hook(lambda *call: calls.append(1))
    ((_, tensor),) = collect(model, batches(3), compare=True).items()
    assert len(tensor.errors) > 1
    assert len(calls) == 3, "two batches are counted, and one is compared on"


def test_what_is_not_finite_in_a_batch_held_back_is_an_error() -> None:
    model, data = one_layer(), [{"inputs_embeds": torch.ones(1, 4, 24)} for _ in range(3)]
    data[1]["inputs_embeds"][0, 2, 3] = torch.nan
    before = models.snapshot(model)
    with pytest.raises(CalibrationError, match=r"query\._input_quantizer saw NaN or infinity"):
        calibrate(model, data)
    models.assert_unchanged(model, before)


def test_batches_may_come_from_an_iterator() -> None:
    model = one_layer(*only("query._input_quantizer"))
    expected = models.ranges(calibrate(model, batches(3), method="auto"))
    models.assert_equal(models.ranges(calibrate(model, iter(batches(3)), method="auto")), expected)


@pytest.mark.parametrize("state", ["uncalibrated", "calibrated"])
def test_comparing_leaves_the_model_as_it_was(state: str) -> None:
    model = one_layer(*only("query._input_quantizer")).train()
    if state == "calibrated":
        calibrate(model, batches(1), method="max")
    before, hooks = models.snapshot(model), [dict(module._forward_hooks) for module in model.modules()]
    collect(model, batches(2), compare=True)
    models.assert_unchanged(model, before)
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks


@pytest.mark.parametrize("state", ["uncalibrated", "calibrated"])
def test_an_error_while_comparing_leaves_the_model_as_it_was(state: str) -> None:
    model = one_layer(*only("query._input_quantizer"))
    if state == "calibrated":
        calibrate(model, batches(1), method="max")
    before, hooks = models.snapshot(model), [dict(module._forward_hooks) for module in model.modules()]
    quantizers = [
        (quantizer._calibrator, quantizer._if_calib, quantizer._if_quant)
        for _, quantizer in named_quantizers(model)
    ]
    with pytest.raises(ValueError, match="input_ids"):
        calibrate(model, [batches(1)[0], {"input_idz": 1}], method="auto")
    models.assert_unchanged(model, before)
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks
    after = [
        (quantizer._calibrator, quantizer._if_calib, quantizer._if_quant)
        for _, quantizer in named_quantizers(model)
    ]
    assert after == quantizers


def test_an_error_inside_an_operation_leaves_the_model_as_it_was() -> None:
    """It breaks while it is repeated with a range that is not its own."""
    model = one_layer(*only("query._input_quantizer"))
    calibrate(model, batches(1), method="max")
    before, query = models.snapshot(model), model.get_submodule(QUERY)

    def fail(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if module._if_quant:
            raise ZeroDivisionError

    handle = query._input_quantizer.register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError):
        calibrate(model, batches(2), method="auto")
    handle.remove()
    models.assert_unchanged(model, before)
    assert query._input_quantizer._if_quant


@pytest.mark.parametrize("extra", [{}, {"use_cache": True}], ids=["default", "cache asked for"])
@pytest.mark.parametrize("name", ["BertLMHeadModel", models.CROSS])
def test_a_decoder_with_a_cache(name: str, extra: dict[str, Any]) -> None:
    """A repeated operation must not find its own keys in the cache."""
    overrides = ("*_input_quantizer=off", "*.matmul_k_input_quantizer=on")
    model = one_layer(*overrides, name=name)
    assert model.config.use_cache
    data = [batch | extra for batch in batches(2, name)]
    statistics = collect(model, data, compare=True)
    path = f"bert.{LAYER}.attention.self.matmul_k_input_quantizer"
    without = [batch | {"use_cache": False} for batch in data]
    expected = errors_by_hand(
        one_layer(*overrides, name=name), path, list(statistics[path].errors), [without[1]], padding=True
    )
    assert list(statistics[path].errors.values()) == pytest.approx(expected, rel=1e-12)


def test_a_quantizer_that_no_batch_held_back_reaches_has_a_range() -> None:
    model = one_layer(
        "*_input_quantizer=off", "*.crossattention.*query._input_quantizer=on", name=models.CROSS
    )
    full = models.inputs(models.CROSS)
    part = {name: tensor for name, tensor in full.items() if "encoder" not in name}
    calibrate(model, [full, part, full], method="auto")
    statistics = collect(model, [full])
    path = f"bert.{LAYER}.crossattention.self.query._input_quantizer"
    assert model.get_submodule(path).amax == statistics.ranges("percentile")[path], "nothing was compared"


def test_ranges_are_finite_where_the_error_is_not() -> None:
    model = one_layer(*only("output.dense._input_quantizer"))
    with torch.no_grad():
        model.get_submodule(f"{LAYER}.output.dense").weight.fill_(3e38)
    calibrate(model, batches(2), method="auto")
    assert all(amax is None or amax.isfinite().all() for amax in models.ranges(model).values())
