"""Batches that a model does not take: one error that names the batch and what is wrong, from every verb."""

from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from torch import nn

import qdqpatch
from qdqpatch import calibration
from qdqpatch.errors import DataError
from qdqpatch.exporter.tracing import outputs_of
from qdqpatch.patching.arguments import check_arguments, run

GOOD = models.inputs(seed=2)
IDS = GOOD["input_ids"]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"input_ids": IDS + 1000}, "input_ids of 104.*from 0 to 47. Take the tokenizer"),
    ({"input_ids": IDS - 1000}, "input_ids of -1000,"),
    ({"input_ids": IDS.float()}, r"torch.float32 of shape \(2, 8\), not whole numbers"),
    ({"input_ids": IDS[:0]}, "there is no token in it"),
    ({"token_type_ids": torch.full_like(IDS, 7)}, "token_type_ids of 7.*from 0 to 1"),
    ({"position_ids": torch.full_like(IDS, 99)}, "position_ids of 99.*from 0 to 31"),
    ({"special_tokens_mask": IDS}, "'special_tokens_mask', which .* does not take: leave it out"),
    ({"attention_masks": IDS}, "does not take: did you mean 'attention_mask'"),
    ({"attention_mask": torch.ones(2, 7)}, r"attention_mask of shape \(2, 7\) for 2 rows of 8 tokens"),
]
VERBS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "calibrate": lambda model, batch: qdqpatch.calibrate(model, [GOOD, batch]),
    "smooth": lambda model, batch: calibration.smooth(model, [GOOD, batch]),
    "shift": lambda model, batch: calibration.shift(model, [batch]),
    "smooth_inputs": lambda model, batch: calibration.smooth_inputs(model, [batch]),
    "smooth_residuals": lambda model, batch: calibration.smooth_residuals(model, [batch]),
    "refine_ranges": lambda model, batch: calibration.refine_ranges(model, [batch], epochs=1),
    "tune": lambda model, batch: calibration.tune(model, [batch], 1),
    "round_weights": lambda model, batch: calibration.round_weights(model, [batch]),
    "fuse_inputs": lambda model, batch: calibration.fuse_inputs(model, [batch]),
    "ptq": lambda model, batch: qdqpatch.ptq(model, [batch, GOOD], shift=True),
    "audit": lambda model, batch: qdqpatch.audit(model, batch),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_what_a_batch_has_wrong(verb: str, calibrated) -> None:
    model = calibrated()
    before = models.ranges(model)
    for change, message in BAD:
        with pytest.raises(DataError, match=f"(?i)^(the )?batch.*{message}"):
            VERBS[verb](model, GOOD | change)
    models.assert_equal(models.ranges(model), before)


def test_optimize_says_it_too() -> None:
    model = models.build("BertForSequenceClassification")
    for change, message in BAD:
        with pytest.raises(DataError, match=f"^Batch 5.*{message}"):
            qdqpatch.optimize(model, [GOOD] * 4 + [GOOD | change])
    with pytest.raises(DataError, match="Some batches have token_type_ids and others have not"):
        qdqpatch.optimize(model, [GOOD] * 4 + [{"input_ids": IDS}])


def test_sequences_are_no_longer_than_there_are_positions(calibrated) -> None:
    with pytest.raises(DataError, match=r"33 tokens, .* positions for 32.*max_length=32"):
        qdqpatch.calibrate(calibrated(), [{"input_ids": IDS.new_ones(1, 33)}])


def test_what_the_model_says_itself_is_one_line_with_the_shapes(calibrated) -> None:
    for batch, message in (
        (GOOD | {"labels": torch.tensor([99, 99])}, r"labels \(2,\): Target 99 is out of bounds"),
        ({"attention_mask": GOOD["attention_mask"]}, r"attention_mask \(2, 8\): You must specify"),
        (GOOD | {"token_type_ids": "abc"}, r"token_type_ids \(str\)"),
    ):
        with pytest.raises(DataError, match=f"cannot be run on batch 1, of .*{message}") as raised:
            qdqpatch.calibrate(calibrated("BertForSequenceClassification"), [batch])
        assert raised.value.__cause__ is not None
        assert "\n" not in str(raised.value)


def test_what_a_model_takes_passes() -> None:
    class Anything(nn.Module):
        def forward(self, **batch: Any) -> Any:
            return batch

    class Adapted(nn.Module):
        def forward(self, input_ids: Any = None, task_ids: Any = None, **batch: Any) -> Any:
            return input_ids, task_ids, batch

    check_arguments(Anything(), {"anything": IDS})
    check_arguments(Adapted(), GOOD)  # as peft's do, it hands on what it does not name
    bert = models.build("BertModel")
    check_arguments(bert, GOOD | {"output_attentions": True, "num_items_in_batch": torch.tensor(3)})
    check_arguments(bert, {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 8, 8)})
    check_arguments(models.build("BertForMultipleChoice"), models.inputs("BertForMultipleChoice"))


def test_lack_of_memory_is_no_fault_of_the_batch() -> None:
    class Large(nn.Module):
        def forward(self, input_ids: Any) -> Any:
            raise torch.OutOfMemoryError("no more")

    with pytest.raises(torch.OutOfMemoryError):
        run(Large(), {"input_ids": IDS})


def test_outputs_have_names_where_the_config_says_a_tuple() -> None:
    model = models.build("BertForSequenceClassification")
    model.config.return_dict = False
    assert isinstance(model(**GOOD), tuple)
    assert list(run(model, GOOD)) == ["logits"]
    assert list(outputs_of(model)(GOOD)) == ["logits"]
    qdqpatch.ptq(model, [GOOD] * 4, method="max", tune=1)
    assert isinstance(model(**GOOD), tuple)
