"""What is measured: latencies in turns, sizes on disk, load time and memory."""

import itertools
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from benches import file_contender
from checkpoints import write_checkpoint
from exported import VOCABULARY, write_onnx, write_openvino
from onnx import TensorProto, helper, save

from qdqpatch.bench import process
from qdqpatch.bench.measure import RUNS, Latency, interleave
from qdqpatch.bench.process import alone
from qdqpatch.bench.sizes import size_on_disk
from qdqpatch.engines.contenders import Contender, Facts
from qdqpatch.engines.shapes import Shape
from qdqpatch.errors import EngineError


def test_contenders_run_in_turns() -> None:
    calls: list[str] = []
    after = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = interleave(runs, 2, after_round=lambda: after.append(len(calls)))
    turn = 1 + RUNS
    assert calls == (["a"] * turn + ["b"] * turn) * 3
    assert after == [2 * turn, 4 * turn, 6 * turn]
    assert {name: len(found) for name, found in times.items()} == {"a": 2 * RUNS, "b": 2 * RUNS}


def test_rounds_to_warm_up() -> None:
    calls: list[str] = []
    times = interleave({"a": lambda: calls.append("a")}, 1, warmup=3)
    assert len(calls) == 4 * (1 + RUNS)
    assert len(times["a"]) == RUNS


def test_first_runs_do_not_count() -> None:
    now = 0.0
    # Of each turn the first run takes long; of the first turn, all do.
    durations = {
        "a": itertools.chain([99.0] * (1 + RUNS), itertools.cycle([50.0, 1.0, 2.0, 3.0])),
        "b": itertools.chain([99.0] * (1 + RUNS), itertools.cycle([50.0, 10.0, 20.0, 30.0])),
    }

    def run(name: str) -> None:
        nonlocal now
        now += next(durations[name])

    times = interleave({name: lambda name=name: run(name) for name in "ab"}, 2, clock=lambda: now)
    assert times == {"a": [1, 2, 3] * 2, "b": [10, 20, 30] * 2}


def test_percentiles() -> None:
    assert Latency.of([5.0]) == Latency(5, 5, 5)
    assert Latency.of([11, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) == Latency(6, 10, pytest.approx(10.9))
    assert Latency.of([1, 2, 3, 4]) == Latency(2.5, pytest.approx(3.7), pytest.approx(3.97))


def test_size_of_an_onnx_file_is_with_its_external_data(here: Path) -> None:
    whole = write_onnx(here / "whole.onnx")
    assert size_on_disk(file_contender(whole)) == whole.stat().st_size
    split = write_onnx(here / "split.onnx", external="weights.data")
    data = here / "weights.data"
    assert data.stat().st_size >= VOCABULARY * 16 * 4
    (here / "split.onnx.unrelated").write_bytes(bytes(1000))
    assert size_on_disk(file_contender(split)) == split.stat().st_size + data.stat().st_size


def test_external_data_in_a_branch_counts(here: Path) -> None:
    constant = helper.make_tensor("constant", TensorProto.FLOAT, [2], [1.0, 2.0])
    del constant.float_data[:]
    constant.data_location = TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="branch.data")
    value = helper.make_tensor_value_info("value", TensorProto.FLOAT, [2])
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["value"], value=constant)], "b", [], [value]
    )
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [2])
    node = helper.make_node("If", ["flag"], ["out"], then_branch=branch, else_branch=branch)
    model = helper.make_model(helper.make_graph([node], "g", [flag], [out]))
    (here / "branch.data").write_bytes(bytes(8))
    save(model, str(here / "if.onnx"))
    assert size_on_disk(file_contender(here / "if.onnx")) == (here / "if.onnx").stat().st_size + 8


def test_size_of_other_models(here: Path) -> None:
    graph = write_openvino(here / "m.xml", write_onnx(here / "m.onnx"))
    expected = graph.stat().st_size + (here / "m.bin").stat().st_size
    assert size_on_disk(file_contender(graph, "openvino")) == expected
    folder = write_checkpoint(here / "float")
    weights = (folder / "model.safetensors").stat().st_size
    assert size_on_disk(Contender("float", "torch", str(folder), Facts())) == weights


def test_size_needs_onnx(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_onnx(here / "a.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EngineError, match=r"onnx.*pip install onnx"):
        size_on_disk(file_contender(path))


def test_footprint_in_this_process(here: Path) -> None:
    found = process.measure(file_contender(write_onnx(here / "a.onnx")), 1, Shape(1, 4))
    assert found.load_seconds > 0
    assert found.memory is not None
    assert found.process_memory is not None
    assert 0 <= found.memory < found.process_memory


@pytest.mark.slow
def test_a_process_does_not_count_the_memory_of_its_parent(here: Path) -> None:
    contender = file_contender(write_onnx(here / "a.onnx"))
    weight = np.ones(100_000_000)  # 0.8 GB, beside what this process has anyway
    most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = alone(contender, 1, Shape(2, 4))
    assert found.process_memory is not None
    assert 50e6 < found.process_memory < 1e9 < most
    assert weight.nbytes < most
    assert found.memory is not None
    assert found.memory < 200e6


@pytest.mark.slow
def test_a_failure_in_the_process_is_an_error(here: Path) -> None:
    (here / "a.onnx").write_bytes(b"nonsense")
    with pytest.raises(EngineError, match=r"^a\.onnx in onnxruntime failed in a process .*cannot load"):
        alone(file_contender(here / "a.onnx"), 1, Shape(1, 4))
