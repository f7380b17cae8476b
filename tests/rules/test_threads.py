"""What one thread does to models, another one that serves a model must not notice."""

import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import models
import pytest
import torch
from torch import nn
from transformers import BertModel

import qdqpatch
from qdqpatch.patching.apply import named_quantizers

CALLS = nn.Module.__call__, nn.Module.__getattr__
"""torch's own methods."""
ROUNDS = 3


@pytest.fixture(autouse=True)
def nothing_made_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the threads find no class that another test has made, so that they race for it."""
    monkeypatch.setattr("qdqpatch.rules.rewriting._MADE", {})
    monkeypatch.setattr("qdqpatch.rules.adds._FOUND", {})


def test_threads_serve_quantize_plan_load_copy_and_pickle_at_once(tmp_path: Path, calibrated) -> None:
    calibrated().save_pretrained(tmp_path)
    served, source = models.float_model(), calibrated()
    expected, quantized = models.outputs(served), models.outputs(source)
    paths = {path for path, _ in named_quantizers(source)}
    floats = [models.float_model() for _ in range(2 * ROUNDS)]
    done = threading.Event()

    def serve() -> int:
        calls = 0
        while not done.is_set() or not calls:
            models.assert_equal(models.outputs(served), expected)
            calls += 1
        return calls

    def quantize() -> None:
        model = qdqpatch.quantize(floats.pop())
        assert {path for path, _ in named_quantizers(model)} == paths
        models.assert_equal(models.outputs(model), models.outputs(qdqpatch.quantize(floats.pop())))

    def plan() -> None:
        assert len(qdqpatch.plan(served).sites) == 20

    def load() -> None:
        models.assert_equal(models.outputs(BertModel.from_pretrained(tmp_path).eval()), quantized)

    def duplicate() -> None:
        models.assert_equal(models.outputs(copy.deepcopy(source)), quantized)

    def unpickle() -> None:
        models.assert_equal(models.outputs(pickle.loads(pickle.dumps(source))), quantized)

    with ThreadPoolExecutor() as pool:
        serving = [pool.submit(serve) for _ in range(2)]
        work = [pool.submit(repeat, task) for task in (quantize, plan, load, duplicate, unpickle)]
        errors = [task.exception() for task in work]
        done.set()
        assert [task.exception() for task in serving] == [None, None]
    assert errors == [None] * 5
    assert (nn.Module.__call__, nn.Module.__getattr__) == CALLS


def repeat(task: Callable[[], None]) -> None:
    for _ in range(ROUNDS):
        task()


def test_threads_that_quantize_at_once_share_their_classes() -> None:
    floats = [models.float_model("BertForMaskedLM") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        quantized = list(pool.map(qdqpatch.quantize, floats))
    kinds = [{path: type(module) for path, module in model.named_modules()} for model in quantized]
    assert all(kind == kinds[0] for kind in kinds)
    assert torch.is_grad_enabled()
