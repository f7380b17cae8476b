"""The benchmarks run, here on a tiny BERT, and their tables have every row that the README quotes."""

import importlib
from pathlib import Path

import pytest
import torch
from models import config
from transformers import BertModel

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def checkpoint(tmp_path):
    BertModel(config()).save_pretrained(tmp_path)
    return str(tmp_path)


def test_time_of_quantizing(benchmark_module, checkpoint):
    rows = benchmark_module("quantize_time").measure_time(checkpoint, rounds=1)
    assert [row[0] for row in rows] == [
        "from_pretrained, float",
        "qdqpatch.quantize",
        "qdqpatch.dequantize",
        "from_pretrained, quantization_config=QDQConfig()",
    ]
    assert all(figure.endswith(" ms") for row in rows for figure in row[1:])


def test_quantizing_allocates_no_tensor_and_keeps_every_parameter(benchmark_module, checkpoint):
    figures = dict(benchmark_module("quantize_time").measure_memory(checkpoint))
    count = len(list(BertModel(config()).parameters()))
    assert figures["same Parameter at the same address after"] == f"{count} of {count}"
    assert figures["Parameters added"] == "0"
    assert figures["tensors the model holds more"] == "0"
    assert figures["tensors allocated meanwhile"] == "0"


def test_the_count_of_allocated_bytes_sees_a_copy_and_no_view(benchmark_module):
    tensor = torch.ones(8)
    with benchmark_module("quantize_time").AllocatedBytes() as allocated:
        tensor.view(2, 4)
        assert allocated.total == 0
        tensor.clone()
    assert allocated.total == 32


def test_time_of_a_forward_pass(benchmark_module):
    forward_time = benchmark_module("forward_time")
    rows = forward_time.measure(forward_time.contenders(config()), batch=1, length=8, rounds=1)
    assert [row[0] for row in rows] == [
        "float",
        "qdqpatch, toolkit arithmetic",
        "pytorch-quantization, toolkit arithmetic",
        "qdqpatch, native arithmetic",
        "pytorch-quantization, native arithmetic",
    ]
    assert rows[0][-1] == "1.00"
