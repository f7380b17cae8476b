"""Batches made of arrays, lists and rows."""

from collections.abc import Callable
from typing import Any

import models
import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor

import qdqpatch
from qdqpatch.calibration import collect, refine_ranges
from qdqpatch.calibration.batching import as_tensors
from qdqpatch.errors import CalibrationError, DataError

BATCHES = [models.inputs(seed=seed) for seed in (2, 3)]


def converted(convert: Callable[[Tensor], Any]) -> list[dict[str, Any]]:
    return [{name: convert(tensor) for name, tensor in batch.items()} for batch in BATCHES]


@pytest.mark.parametrize(
    "batches",
    [
        converted(Tensor.numpy),
        converted(Tensor.tolist),
        converted(list),
        converted(lambda tensor: tensor.numpy().astype(np.int32)),
    ],
    ids=["arrays", "lists", "lists of tensors", "int32"],
)
def test_lists_and_arrays_are_made_tensors(batches: list[dict[str, Any]], uncalibrated) -> None:
    expected = models.ranges(qdqpatch.calibrate(uncalibrated(), BATCHES))
    models.assert_equal(models.ranges(qdqpatch.calibrate(uncalibrated(), batches)), expected)


def test_rows_of_a_dataset_are_batches_of_one(uncalibrated) -> None:
    columns = {name: tensor.tolist() for name, tensor in BATCHES[0].items()}
    rows = [{name: tensor[row : row + 1] for name, tensor in BATCHES[0].items()} for row in range(2)]
    expected = models.ranges(qdqpatch.calibrate(uncalibrated(), rows))
    for dataset in (Dataset.from_dict(columns), Dataset.from_dict(columns).with_format("torch")):
        models.assert_equal(models.ranges(qdqpatch.calibrate(uncalibrated(), dataset)), expected)


def test_refining_takes_them_too(calibrated) -> None:
    expected = models.ranges(refine_ranges(calibrated(), BATCHES, epochs=1))
    models.assert_equal(
        models.ranges(refine_ranges(calibrated(), converted(Tensor.tolist), epochs=1)), expected
    )


def test_what_is_no_tensor_stays() -> None:
    pair = (torch.ones(2), torch.ones(2))
    (batch,) = as_tensors([{"use_cache": False, "encoder_outputs": pair, "x": None, "label": [0.5, 1]}])
    assert batch["use_cache"] is False
    assert batch["encoder_outputs"] is pair
    assert batch["x"] is None
    assert batch["label"].dtype == torch.float32


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([{"input_ids": [[1, 2], [3]]}], "'input_ids' of batch 1 cannot be made a tensor"),
        ([{"input_ids": [[1, 2]], "text": ["a"]}], "'text' of batch 1"),
        ([{"input_ids": np.array(["a"])}], "'input_ids' of batch 1"),
        (BATCHES[0], r"pass \[batch\]"),
        (["a text"], "Batch 1 is a str"),
    ],
)
def test_what_cannot_be_a_batch_is_named(batches: Any, message: str, uncalibrated) -> None:
    with pytest.raises(DataError, match=message) as raised:
        collect(uncalibrated(), batches)
    assert isinstance(raised.value, CalibrationError)
