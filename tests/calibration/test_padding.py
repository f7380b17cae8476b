"""Padding is no data: what is counted is what the rows hold, each at its own length."""

from typing import Any

import models
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel

import qdqpatch
from qdqpatch.calibration import collect
from qdqpatch.calibration.counting import BatchCounts
from qdqpatch.calibration.histogram import Histogram
from qdqpatch.calibration.padding import Padding
from qdqpatch.calibration.statistics import Statistics

HEADS, DIM = 2, 12  # of `models.CONFIG`

RIGHT = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
MASKS = {
    "right": RIGHT,
    "left": RIGHT.flip(1),
    "holes": torch.tensor([[1, 0, 1, 0, 1], [0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
    "full": torch.ones(3, 5, dtype=torch.long),
    "an empty row": torch.tensor([[1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 0, 0]]),
    "bool": RIGHT.bool(),
    "float": RIGHT.float(),
}


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def counted(tensor: Tensor, name: str, batch: dict[str, Any]) -> Histogram:
    total = Histogram.empty(tensor.device)
    BatchCounts(Padding(batch)).count(tensor, name, total)
    return total


def assert_counts(actual: Histogram, rows: list[Tensor]) -> None:
    expected = Histogram.empty(torch.device("cpu"))
    for row in rows:
        expected.add(Histogram.of(row))
    for name in ("counts", "exponent", "amax"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name


# One tensor of each layout, and the rows of it alone.

HIDDEN = "_input_quantizer"
PROBABILITIES = "matmul_a_input_quantizer"
LAYOUTS = {
    HIDDEN: random(3, 5, 24),
    "add_residual_input_quantizer": random(3, 5, 24),
    "matmul_q_input_quantizer": random(3, HEADS, 5, DIM),
    "matmul_k_input_quantizer": random(3, HEADS, DIM, 5),
    "matmul_v_input_quantizer": random(3, HEADS, 5, DIM),
}


def rows_alone(tensor: Tensor, name: str, mask: Tensor) -> list[Tensor]:
    dim = {"matmul_q": 1, "matmul_k": 2, "matmul_v": 1}.get(name[:8], 0)
    return [
        row.index_select(dim, shown.bool().nonzero()[:, 0]) for row, shown in zip(tensor, mask, strict=True)
    ]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_counts_are_those_of_the_rows_alone(name: str, mask: Tensor) -> None:
    tensor = LAYOUTS[name]
    found = counted(tensor, name, {"attention_mask": mask})
    assert_counts(found, rows_alone(tensor, name, mask))
    assert int(found.counts.sum()) == tensor.numel() * int(mask.sum()) // mask.numel()


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_probabilities_are_those_of_the_rows_alone(mask: Tensor) -> None:
    scores = random(3, HEADS, 5, 5)
    shown = mask.bool()
    tensor = torch.where(shown[:, None, None], scores, torch.finfo(scores.dtype).min).softmax(-1)
    tensor[0, 0, 0, 0] = 0.0  # a zero at a key that is data stays
    found = counted(tensor, PROBABILITIES, {"attention_mask": mask})
    rows = [row[:, keep][:, :, keep] for row, keep in zip(tensor, shown, strict=True)]
    assert_counts(found, rows)
    assert int(found.counts.sum()) == HEADS * int((shown.sum(1) ** 2).sum())


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name.startswith("matmul")])
def test_heads_may_be_in_the_rows(name: str, mask: Tensor) -> None:
    tensor, batch = LAYOUTS[name], {"attention_mask": mask}
    assert_counts(counted(tensor.flatten(0, 1), name, batch), rows_alone(tensor, name, mask))
    zeroed = Padding(batch).zeroed(tensor.flatten(0, 1), name)
    assert torch.equal(zeroed, Padding(batch).zeroed(tensor, name).flatten(0, 1))


def test_probabilities_may_have_heads_in_the_rows() -> None:
    shown, batch = RIGHT.bool(), {"attention_mask": RIGHT}
    tensor = random(3, HEADS, 5, 5).masked_fill(~shown[:, None, None], float("-inf")).softmax(-1)
    assert_counts(
        counted(tensor.flatten(0, 1), PROBABILITIES, batch),
        [row[:, keep][:, :, keep] for row, keep in zip(tensor, shown, strict=True)],
    )


@pytest.mark.parametrize("operand", ["c2p_k", "p2c_q", "conv_span"])
def test_what_has_no_row_of_the_batch_is_data(operand: str) -> None:
    tensor = random(3, 5, DIM)
    assert_counts(counted(tensor, f"matmul_{operand}_input_quantizer", {"attention_mask": RIGHT}), [tensor])


@pytest.mark.parametrize("name", [*LAYOUTS, PROBABILITIES])
@pytest.mark.parametrize(
    "batch",
    [
        {},
        {"attention_mask": None},
        {"attention_mask": torch.ones(3, 1, 5, 5)},
        {"attention_mask": torch.tril(torch.ones(3, 5, 5)), "input_ids": torch.ones(3, 5).long()},
        {"attention_mask": torch.tril(torch.ones(1, 3, 5)), "input_ids": torch.ones(3, 5).long()},
        {"attention_mask": torch.zeros(3, 6)},
        {"attention_mask": torch.zeros(4, 5)},
    ],
    ids=["none", "null", "4-D", "queries by keys", "for all rows", "other length", "other batch"],
)
def test_without_a_mask_that_fits_everything_is_data(name: str, batch: dict[str, Any]) -> None:
    tensor = LAYOUTS.get(name, random(3, HEADS, 5, 5))
    assert_counts(counted(tensor, name, batch), [tensor])


def test_tensors_without_positions_are_data() -> None:
    pooled = random(3, 5)
    assert_counts(counted(pooled, HIDDEN, {"attention_mask": MASKS["right"]}), [pooled])


def test_cross_attention_has_queries_of_one_mask_and_keys_of_the_other() -> None:
    encoder = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    batch = {"attention_mask": RIGHT, "encoder_attention_mask": encoder}
    tensor = torch.where(
        encoder.bool()[:, None, None], random(3, HEADS, 5, 4), torch.finfo(torch.float).min
    ).softmax(-1)
    rows = []
    for row, queries, keys in zip(tensor, RIGHT.bool(), encoder.bool(), strict=True):
        # Where every key is hidden each gets the same share, and those are values that the matmul sees.
        rows.append(row[:, queries][:, :, keys if keys.any() else ~keys])
    assert_counts(counted(tensor, PROBABILITIES, batch), rows)
    values = random(3, HEADS, 4, DIM)
    found = counted(values, "matmul_v_input_quantizer", batch)
    assert_counts(found, [row[:, keys] for row, keys in zip(values, encoder.bool(), strict=True)])


# Whole models.


def change_padding(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other tokens at the hidden positions."""
    hidden = 1 - batch["attention_mask"]
    return batch | {
        "input_ids": (batch["input_ids"] + hidden * 7) % 48,
        "token_type_ids": batch["token_type_ids"] ^ hidden,
    }


def assert_same(actual: Statistics, expected: Statistics, except_for: str = " ") -> None:
    assert actual.keys() == expected.keys()
    for path, tensor in expected.items():
        if except_for not in path:
            assert np.array_equal(actual[path].counts, tensor.counts), path
            assert (actual[path].amax, actual[path].width) == (tensor.amax, tensor.width), path


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", models.CHANGES)
def test_what_padding_holds_changes_nothing(name: str, side: str) -> None:
    batch = models.inputs(name, seed=5)
    if side == "left":
        batch["attention_mask"] = batch["attention_mask"].flip(-1)
    model = models.uncalibrated(name)
    found = collect(model, [batch])
    assert_same(collect(model, [change_padding(batch)]), found)
    assert min(tensor.counts.min() for tensor in found.values()) >= 0
    ranges, others = (
        collect(model, [given], padding_aware=False).ranges("max") for given in (batch, change_padding(batch))
    )
    assert any(not torch.equal(ranges[path], others[path]) for path in ranges)


def test_as_many_values_are_counted_as_the_rows_hold() -> None:
    batch = models.inputs()
    lengths = batch["attention_mask"].sum(1)
    tokens = int(lengths.sum())
    totals = {
        path: int(seen.counts.sum()) for path, seen in collect(models.uncalibrated(), [batch] * 2).items()
    }
    for path, total in totals.items():
        match path.split("."):
            case [*_, "matmul_a_input_quantizer"]:
                assert total == 2 * HEADS * int((lengths**2).sum()), path
            case [*_, "output", "dense", _] if ".attention." not in path:
                assert total == 2 * 40 * tokens, path
            case _:
                assert total == 2 * 24 * tokens, path


def test_a_row_of_padding_alone_counts_for_nothing() -> None:
    """The other row is in the same batch as ever, so its values are the same to the last bit."""
    model, batch = models.uncalibrated(), models.inputs(padded=False)
    batch["attention_mask"][1] = 0
    found = collect(model, [batch])
    tokens = int(batch["attention_mask"].sum())
    assert {int(seen.counts.sum()) for path, seen in found.items() if "query" in path} == {24 * tokens}
    assert_same(collect(model, [change_padding(batch)]), found)


@pytest.mark.parametrize("rows", [[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
def test_masks_of_one_shape_never_make_a_count_negative(rows: list[int]) -> None:
    batch = models.inputs(models.CROSS, length=5)
    batch["encoder_attention_mask"] = torch.tensor([[1, 1, 1, 1, 1], rows])
    for path, tensor in collect(models.uncalibrated(models.CROSS), [batch]).items():
        assert tensor.counts.min() >= 0, path


def test_an_encoder_and_its_decoder_have_masks_of_their_own() -> None:
    torch.manual_seed(3)
    parts = [
        BertConfig(**models.CONFIG),
        BertConfig(**models.CONFIG, is_decoder=True, add_cross_attention=True),
    ]
    model = qdqpatch.quantize(
        EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(*parts)).eval()
    )
    tokens = torch.arange(1, 13).reshape(2, 6)
    batch = {
        "input_ids": tokens,
        "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]]),
        "decoder_input_ids": tokens[:, :4],
        "decoder_attention_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]),
    }
    found = collect(model, [batch])
    other = dict(batch, input_ids=torch.where(batch["attention_mask"] == 1, tokens, 40))
    other["decoder_input_ids"] = torch.where(batch["decoder_attention_mask"] == 1, tokens[:, :4], 41)
    assert_same(collect(model, [other]), found)
    totals = {path: int(seen.counts.sum()) for path, seen in found.items()}
    assert totals["encoder.encoder.layer.0.attention.self.query._input_quantizer"] == 24 * 9
    assert totals["decoder.bert.encoder.layer.0.attention.self.query._input_quantizer"] == 24 * 6
    assert totals["decoder.bert.encoder.layer.0.crossattention.self.key._input_quantizer"] == 24 * 9
    cross = "decoder.bert.encoder.layer.0.crossattention.self.matmul_a_input_quantizer"
    assert totals[cross] == HEADS * (2 * 6 + 4 * 3)


def test_a_feed_forward_in_chunks_counts_the_same() -> None:
    """All in one: two GEMMs of other shapes may differ in the last bit."""
    model, chunked = models.uncalibrated(), models.build(chunk_size_feed_forward=2)
    qdqpatch.quantize(chunked)
    assert_same(collect(chunked, [models.inputs()]), collect(model, [models.inputs()]))
    assert {layer.chunk_size_feed_forward for layer in chunked.encoder.layer} == {2}
    qdqpatch.calibrate(chunked, [models.inputs()], method="max")
    with pytest.raises(ValueError, match="input_ids"):
        collect(chunked, [{"no_such_argument": 1}])
    assert {layer.chunk_size_feed_forward for layer in chunked.encoder.layer} == {2}


def test_a_range_per_channel_leaves_padding_out_too() -> None:
    config = qdqpatch.QDQConfig(overrides=["*.value._input_quantizer=axis:2"])
    model = qdqpatch.quantize(models.float_model(), config)
    batch = models.inputs()
    ranges = collect(model, [batch]).ranges("max")
    models.assert_equal(collect(model, [change_padding(batch)]).ranges("max"), ranges)
    everything = collect(model, [batch], padding_aware=False).ranges("max")
    path = "encoder.layer.0.attention.self.value._input_quantizer"
    assert (everything[path] >= ranges[path]).all()
    assert (everything[path] > ranges[path]).any()


@pytest.mark.parametrize("more", [{}, {"input_ids": None}])
def test_choices_given_by_embeddings_have_padding_too(more: dict) -> None:
    name = "BertForMultipleChoice"
    batch = models.inputs(name)
    model = models.float_model(name)
    embeds = model.get_input_embeddings()(batch.pop("input_ids")).detach()
    found = []
    for padding in (0.0, 50.0):
        filled = torch.where(batch["attention_mask"][..., None].bool(), embeds, padding)
        quantized = models.uncalibrated(name)
        qdqpatch.calibrate(quantized, [{**more, **batch, "inputs_embeds": filled}], method="max")
        found.append(models.ranges(quantized))
    models.assert_equal(*found)
