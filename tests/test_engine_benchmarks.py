"""The benchmarks of exported files run, here on a tiny BERT, and their tables have every row."""

import argparse

import onnx
import pytest
import torch
from models import config
from transformers import BertModel

from qdqpatch.engines.shapes import Shape

pytestmark = pytest.mark.usefixtures("traced_once")


def test_an_architecture_has_a_row_for_each_engine(benchmark_module):
    module = benchmark_module("families")
    sizes = {"vocab_size": 60, "dim": 24, "n_layers": 1, "n_heads": 3, "hidden_dim": 40}
    arguments = argparse.Namespace(shape=module.Shape(1, 8), engines=["onnxruntime"], rounds=1, threads=1)
    (row,) = module.measure("distilbert", sizes, arguments)
    assert len(row) == len(module.COLUMNS)
    assert (row[0], row[4], row[6]) == ("distilbert", "onnxruntime", "8 of 8")
    assert module.CHANGES.keys() <= module.ARCHITECTURES.keys()


@pytest.mark.slow
def test_speed_of_exported_models(benchmark_module, monkeypatch, tmp_path):
    export_speed, tiny = benchmark_module("export_speed"), config(max_position_embeddings=64)
    peers, rules = export_speed.peers, export_speed.without_a_rule()
    sum_rule = "Sum before LayerNormalization"
    for owner, name, value in (
        (export_speed, "BERT_BASE", tiny),
        (export_speed, "SHAPES", ((1, 8), (2, 4))),
        (export_speed, "ROUNDS", 1),
        (export_speed, "PRESETS", {"qdqpatch": "qdqbert"}),
        (export_speed, "without_a_rule", lambda: {sum_rule: rules[sum_rule]}),
        (peers, "ONNX_RUNTIME", {"quantize_dynamic": peers.ONNX_RUNTIME["quantize_dynamic"]}),
        (peers, "OPENVINO", {"NNCF": ("a_module_that_is_not_there", None)}),
    ):
        monkeypatch.setattr(owner, name, value)
    files = export_speed.make_files(tiny, tmp_path)
    assert list(files.onnxruntime) == ["fp32", "quantize_dynamic", "qdqpatch"]
    assert list(files.openvino) == ["fp32", "qdqpatch"]
    operators = {
        name: {node.op_type for node in onnx.load(path).graph.node}
        for name, path in files.onnxruntime_without.items()
    }
    assert operators["all rules"] - operators[sum_rule] == {"Sum"}
    rows = export_speed.compare(files.onnxruntime, export_speed.onnxruntime_run)
    assert [row[0] for row in rows] == list(files.onnxruntime)
    assert rows[0][1].endswith("(1.00x)")
    assert [len(row) for row in rows] == [4] * 3
    assert [bool(row[-1]) for row in rows] == [False, False, True]
    for engine, slowest in (("onnxruntime", "MatMulIntegerToFloat"), ("openvino", "FullyConnected")):
        found = export_speed.profile(files, (1, 8), engine)
        assert any(operator.startswith(slowest) for operator in found)
        assert export_speed.profile_rows([found])[-1][0] == "milliseconds in all"
    assert export_speed.gemm_seconds(tiny, (1, 8), 1, 1) > 0


def test_every_rule_of_onnx_runtime_is_left_out_once(benchmark_module):
    export_speed = benchmark_module("export_speed")
    whole = export_speed.ort_target.TARGET.passes
    without = export_speed.without_a_rule()
    assert without.pop(export_speed.PUSH) == whole
    assert len(without) == 3
    assert all(passes != whole for passes in without.values())


def test_contenders_run_in_turn_and_the_first_of_four_runs_is_not_timed(benchmark_module, monkeypatch):
    common, order = benchmark_module("common"), []
    clock = iter([0, 1, 0, 5, 0, 3, 0, 10, 0, 30, 0, 20])
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(clock))
    runs = {name: (lambda name=name: order.append(name)) for name in "ab"}
    assert common.in_turn(runs, 1) == {"a": 3, "b": 20}
    assert order == ["a"] * 4 + ["b"] * 4


@pytest.mark.slow
def test_what_tensorrt_makes_of_files(benchmark_module, monkeypatch, tmp_path):
    pytest.importorskip("tensorrt_rtx_bindings")
    tensorrt, shape = benchmark_module("tensorrt_rtx"), Shape(2, 16)
    few = {name: tensorrt.OURS[name] for name in ("qdqpatch, outputs", "qdqpatch, outputs, smoothed")}
    monkeypatch.setattr(tensorrt, "OURS", few)
    nobody = {"none": ("a_module_that_is_not_there", None)}
    monkeypatch.setattr(tensorrt.peers, "TENSORRT", nobody)
    monkeypatch.setattr(tensorrt.peers, "from_torch", lambda model: nobody)
    monkeypatch.delenv(tensorrt.REFERENCE, raising=False)
    found = dict(tensorrt.files(config(max_position_embeddings=64), tmp_path))
    assert list(found) == ["float, fp16", *few, "float, fp16, torch's export"]
    floats = {}
    cells = [tensorrt.cell(file, "SM89", shape, floats) for file in found.values()]
    assert cells[0].endswith("(1.00)")
    assert float(cells[1].rpartition("(")[2].rstrip(")")) < 1
    assert cells[2] == cells[1]
    (tmp_path / "text.onnx").write_text("no model")
    assert tensorrt.cell(tmp_path / "text.onnx", "SM89", shape, floats).startswith("refused: ")


@pytest.mark.slow
def test_modelopt_quantizes_the_torch_model(benchmark_module, tmp_path):
    peers, export_speed = benchmark_module("peers"), benchmark_module("export_speed")
    if not (peers.FOLDER / "modelopt").is_dir():
        pytest.skip("ModelOpt is not installed; see benchmarks/peers.txt")
    tiny = config(max_position_embeddings=64)
    model = BertModel(tiny, add_pooling_layer=False).eval()
    tools = peers.from_torch(model)
    ((name, file),) = peers.make(tools, tmp_path / "float.onnx", export_speed.feed_of(tiny, 2, 8))
    assert name == "ModelOpt, torch"
    graph = onnx.load(file).graph
    scales = {node.input[1] for node in graph.node if node.op_type == "QuantizeLinear"}
    values = {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    assert {values[name].data_type for name in scales} == {onnx.TensorProto.FLOAT16}
    of_weights = [name for name in scales if values[name].dims]
    assert len(of_weights) == sum(isinstance(part, torch.nn.Linear) for part in model.modules())
    assert model.dtype == torch.float32
