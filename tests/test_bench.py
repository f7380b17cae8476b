"""Benchmarks: what is found to run, what it is given, how it is timed and weighed."""

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint
from exported import VOCABULARY, write_onnx, write_openvino
from onnx import TensorProto, helper, save

from qdqpatch.bench import process, side_by_side
from qdqpatch.bench.chart import check_can_plot, write_chart
from qdqpatch.bench.contenders import Contender, Facts, find_contenders
from qdqpatch.bench.inputs import check_inputs, fixed_sizes, make_inputs
from qdqpatch.bench.loading import SIMULATED, load, torch_threads
from qdqpatch.bench.measure import RUNS, Latency, interleave
from qdqpatch.bench.process import Footprint, alone
from qdqpatch.bench.report import Report, Row, rounded
from qdqpatch.bench.shapes import Shape, cut
from qdqpatch.bench.side_by_side import compare
from qdqpatch.bench.sizes import size_on_disk
from qdqpatch.engines import Input
from qdqpatch.errors import CheckpointError, ConfigError, EngineError, ReportError

IDS = Input("input_ids", (None, None), "int64")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def weighed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, str]]:
    """Start no processes; collect what they would have been started for."""
    started: list[tuple[str, int, str]] = []

    def fake(contender: Contender, threads: int, shape: Shape) -> Footprint:
        started.append((str(contender), threads, str(shape)))
        return Footprint(0.5, 3_000_000, 9_000_000)

    monkeypatch.setattr(side_by_side, "alone", fake)
    return started


def file_contender(path: Path, engine: str = "onnxruntime", facts: Facts = Facts(VOCABULARY)) -> Contender:  # noqa: B008
    return Contender(path.name, engine, str(path), facts)


# Shapes


def test_shapes_are_read_and_written() -> None:
    assert Shape.parse("8x128") == Shape(8, 128)
    assert str(Shape(8, 128)) == "8x128"
    assert Shape(8, 128).tokens == 1024
    for text in ("", "8", "8*128", "0x128", "8x0", "-1x8", "1x128x2", "1x1.5", " 1x8"):
        with pytest.raises(ConfigError, match="BATCHxLENGTH"):
            Shape.parse(text)


def test_shapes_are_cut_to_the_limit_and_not_repeated() -> None:
    shapes = (Shape(1, 128), Shape(8, 128), Shape(1, 384))
    assert cut(shapes, 512) == shapes
    assert cut(shapes, 200) == (Shape(1, 128), Shape(8, 128), Shape(1, 200))
    assert cut(shapes, 32) == (Shape(1, 32), Shape(8, 32))


# Contenders


def test_a_file_runs_in_every_engine_that_loads_it(here: Path) -> None:
    write_onnx(here / "a.onnx")
    (here / "b.xml").touch()
    found = find_contenders(["a.onnx", "b.xml"])
    assert [(each.model, each.engine, each.path) for each in found] == [
        ("a.onnx", "onnxruntime", "a.onnx"),
        ("a.onnx", "openvino", "a.onnx"),
        ("b.xml", "openvino", "b.xml"),
    ]
    only = find_contenders(["a.onnx", "b.xml"], ["openvino"])
    assert [each.engine for each in only] == ["openvino", "openvino"]
    assert {each.facts for each in found} == {Facts()}


def test_a_folder_runs_in_what_its_files_are_for(here: Path) -> None:
    for folder, files in {
        "sharded": ["model.safetensors.index.json"],
        "ort": ["model.onnx"],
        "ov": ["openvino_model.xml"],
        "all": ["pytorch_model.bin", "model.onnx", "openvino_model.xml"],
    }.items():
        Path(folder).mkdir()
        for file in files:
            Path(folder, file).touch()
    found = find_contenders(["sharded", "ort", "ov", "all"])
    assert [(each.model, each.engine, each.path) for each in found] == [
        ("sharded", "torch", "sharded"),
        ("ort", "onnxruntime", "ort/model.onnx"),
        ("ort", "openvino", "ort/model.onnx"),
        ("ov", "openvino", "ov/openvino_model.xml"),
        ("all", "torch", "all"),
        ("all", "onnxruntime", "all/model.onnx"),
        ("all", "openvino", "all/openvino_model.xml"),
    ]


def test_the_config_beside_a_model_is_read(here: Path) -> None:
    write_onnx(here / "a.onnx")
    data = {"vocab_size": 48, "max_position_embeddings": 32, "pad_token_id": None, "model_type": "bert"}
    Path("config.json").write_text(json.dumps(data))
    assert find_contenders(["a.onnx"], ["onnxruntime"])[0].facts == Facts(48, 32, None)
    for broken in ("{", "[]"):
        Path("config.json").write_text(broken)
        with pytest.raises(CheckpointError, match=r"Cannot read config\.json"):
            find_contenders(["a.onnx"])


def test_labels_are_the_ends_that_tell_models_apart(here: Path) -> None:
    for folder in ("x/float", "y/float", "y/int8"):
        Path(folder).mkdir(parents=True)
        Path(folder, "model.onnx").touch()
    names = ["x/float", str(here / "y/float"), "y/int8", "x/float"]
    labels = [each.model for each in find_contenders(names, ["onnxruntime"])]
    assert labels == ["x/float", "y/float", "int8", "x/float (2)"]


def test_what_cannot_be_run_is_refused(here: Path) -> None:
    Path("empty").mkdir()
    Path("other").mkdir()
    Path("other/model_int8.onnx").touch()
    Path("weights.bin").touch()
    Path("model.onnx").touch()
    for name, message in {
        "missing.onnx": "There is no file missing.onnx",
        "a/b/missing": "There is no folder a/b/missing",
        "missing": "There is no folder missing here, and no model of that name on the hub",
        "weights.bin": "weights.bin is neither a folder nor an .onnx or .xml file",
        "empty": "nothing to run in empty: none of model.safetensors, pytorch_model.bin, model.onnx, "
        "openvino_model.xml.$",
        "other": "To run model_int8.onnx, name the file",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            find_contenders([name])
    with pytest.raises(ConfigError, match="model.onnx runs in onnxruntime and openvino, not in torch"):
        find_contenders(["model.onnx"], ["torch"])
    with pytest.raises(ConfigError, match="torch can run none of these models; leave out --engine torch"):
        find_contenders(["model.onnx"], ["openvino", "torch"])


def test_an_engine_that_is_not_installed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.onnx").touch()
    Path("b.xml").touch()
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert [each.engine for each in find_contenders(["a.onnx"])] == ["onnxruntime"]
    with pytest.raises(EngineError, match="openvino is not installed: pip install openvino"):
        find_contenders(["a.onnx"], ["openvino"])
    with pytest.raises(EngineError, match=r"Nothing that runs b\.xml is installed: pip install openvino"):
        find_contenders(["b.xml"])


# Inputs


def test_inputs_are_tokens_without_padding() -> None:
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    inputs = [Input(name, (None, None), "int64") for name in names]
    made = make_inputs(inputs, Shape(50, 16), Facts(vocab_size=10, pad_token_id=3))
    assert list(made) == list(names)
    assert set(made["input_ids"].flat) == set(range(10)) - {3}
    assert (made["attention_mask"] == 1).all()
    assert (made["token_type_ids"] == 0).all()
    assert (made["position_ids"] == np.arange(16)).all()
    assert {(each.shape, each.dtype.name) for each in made.values()} == {((50, 16), "int64")}
    again = make_inputs(inputs, Shape(50, 16), Facts(vocab_size=10, pad_token_id=3))
    assert (made["input_ids"] == again["input_ids"]).all()
    assert 0 not in make_inputs([IDS], Shape(50, 16), Facts(10))["input_ids"]
    unknown = make_inputs([IDS], Shape(500, 16), Facts())["input_ids"]
    assert (unknown.min(), unknown.max()) == (1, 999)


def test_inputs_have_the_type_and_the_batch_that_the_graph_names() -> None:
    inputs = [
        Input("input_ids", (None, None), "int32"),
        Input("input_mask", (), "float32"),
        Input("position_ids", (1, None), "int64"),
    ]
    made = make_inputs(inputs, Shape(2, 4), Facts(10))
    assert [(each.dtype.name, each.shape) for each in made.values()] == [
        ("int32", (2, 4)),
        ("float32", (2, 4)),
        ("int64", (1, 4)),
    ]
    assert fixed_sizes(inputs) == (None, None)
    assert fixed_sizes([Input("input_ids", (None, 64), "int64"), *inputs]) == (None, 64)
    assert fixed_sizes([Input("input_ids", (2, 64), "int64")]) == (2, 64)


def test_other_inputs_are_refused() -> None:
    with pytest.raises(ConfigError, match="m takes pixel_values; bench makes input_ids, attention_mask"):
        check_inputs("m", [IDS, Input("pixel_values", (None, None), "float32")])
    with pytest.raises(ConfigError, match="m takes input_ids of 3 dimensions"):
        check_inputs("m", [Input("input_ids", (None, None, None), "int64")])
    check_inputs("m", [IDS, Input("attention_mask", (), "int64")])


# Timing


def test_contenders_run_in_turns() -> None:
    calls: list[str] = []
    after = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = interleave(runs, 2, after_round=lambda: after.append(len(calls)))
    turn = 1 + RUNS
    assert calls == (["a"] * turn + ["b"] * turn) * 3
    assert after == [2 * turn, 4 * turn, 6 * turn]
    assert {name: len(found) for name, found in times.items()} == {"a": 2 * RUNS, "b": 2 * RUNS}


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
    assert Latency.of([5.0]) == Latency(5, 5)
    assert Latency.of([11, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) == Latency(6, 10)
    assert Latency.of([1, 2, 3, 4]) == Latency(2.5, pytest.approx(3.7))


# Sizes


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
    with pytest.raises(EngineError, match=r'onnx.*pip install "qdqpatch\[export\]"'):
        size_on_disk(file_contender(path))


# Loading


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_file_is_run(here: Path, engine: str) -> None:
    loaded = load(file_contender(write_onnx(here / "a.onnx"), engine), 1)
    found: Any = loaded.runner(Shape(2, 8))()
    assert found["logits"].shape == (2, 16)
    assert loaded.takes == "?x?"
    assert loaded.fits(Shape(3, 5))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_what_a_graph_is_made_for(here: Path, engine: str) -> None:
    static = load(file_contender(write_onnx(here / "a.onnx", (1, 8)), engine), 1)
    assert static.takes == "1x8"
    assert static.fits(Shape(1, 8))
    assert not static.fits(Shape(2, 8))
    half = load(file_contender(write_onnx(here / "b.onnx", ("batch", 8)), engine), 1)
    assert half.takes == "?x8"
    assert half.fits(Shape(2, 8))
    assert not half.fits(Shape(2, 9))
    half.runner(Shape(2, 8))()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_ids_of_another_type(here: Path, engine: str) -> None:
    path = write_onnx(here / "a.onnx", ids_type=TensorProto.INT32)
    loaded = load(file_contender(path, engine), 1)
    assert {each.name: each.dtype for each in loaded.inputs} == {
        "input_ids": "int32",
        "attention_mask": "int64",
    }
    loaded.runner(Shape(1, 4))()


def test_a_failing_run_names_the_contender_in_one_line(here: Path) -> None:
    small = load(file_contender(write_onnx(here / "a.onnx"), facts=Facts()), 1)
    with pytest.raises(EngineError, match=r"^a\.onnx in onnxruntime, 4x64: .*config\.json") as caught:
        small.runner(Shape(4, 64))()  # ids up to 1000, and 48 embeddings
    assert "\n" not in str(caught.value)


def test_a_file_that_an_engine_refuses(here: Path) -> None:
    (here / "a.onnx").write_bytes(b"nonsense")
    for engine in ("onnxruntime", "openvino"):
        with pytest.raises(EngineError, match=rf"^{engine} cannot load .*a\.onnx") as caught:
            load(file_contender(here / "a.onnx", engine), 1)
        assert "\n" not in str(caught.value)


def test_checkpoints_run_in_torch_as_they_are(here: Path) -> None:
    models.float_model().save_pretrained("float")
    models.calibrated().save_pretrained("int8")
    for name, note in {"float": None, "int8": SIMULATED}.items():
        (contender,) = find_contenders([name])
        loaded = load(contender, 1)
        assert [each.name for each in loaded.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
        assert loaded.note == note
        found: Any = loaded.runner(Shape(2, 8))()
        model = {"float": models.float_model, "int8": models.calibrated}[name]()
        tensors = make_inputs(loaded.inputs, Shape(2, 8), contender.facts)
        with torch.no_grad():
            expected = model(**{key: torch.from_numpy(value) for key, value in tensors.items()})
        assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
        assert found.last_hidden_state.is_inference()


def test_multiple_choice_is_refused(here: Path) -> None:
    models.build("BertForMultipleChoice").save_pretrained("choices")
    with pytest.raises(ConfigError, match="choices in torch takes \\(batch, choices, length\\)"):
        load(find_contenders(["choices"])[0], 1)


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        _ = 1 / 0
    assert torch.get_num_threads() == before


# Processes


def test_footprint_in_this_process(here: Path) -> None:
    found = process.measure(file_contender(write_onnx(here / "a.onnx")), 1, Shape(1, 4))
    assert found.load_seconds > 0
    assert found.memory is not None
    assert found.process_memory is not None
    assert 0 <= found.memory < found.process_memory


@pytest.mark.slow
def test_a_process_does_not_count_the_memory_of_its_parent(here: Path) -> None:
    contender = file_contender(write_onnx(here / "a.onnx"))
    weight = np.ones(200_000_000, np.float64)  # 1.6 GB
    found = alone(contender, 1, Shape(2, 4))
    assert found.process_memory is not None
    assert 50e6 < found.process_memory < 1e9 < weight.nbytes
    assert found.memory is not None
    assert found.memory < 200e6


@pytest.mark.slow
def test_a_failure_in_the_process_is_an_error(here: Path) -> None:
    (here / "a.onnx").write_bytes(b"nonsense")
    with pytest.raises(EngineError, match=r"^a\.onnx in onnxruntime failed in a process .*cannot load"):
        alone(file_contender(here / "a.onnx"), 1, Shape(1, 4))


# The whole


def test_compare_gives_a_row_for_each_model_engine_and_shape(here: Path, weighed: list[Any]) -> None:
    write_onnx(here / "a.onnx")
    folder = here / "folder"
    folder.mkdir()
    write_openvino(folder / "openvino_model.xml", here / "a.onnx")
    for place in (here, folder):
        models.config().save_pretrained(place)
    steps: list[tuple[str, int, int]] = []
    report = compare(
        ["a.onnx", "folder"],
        shapes=[Shape(1, 8), Shape(4, 8), Shape(1, 16), Shape(1, 8)],
        threads=1,
        rounds=2,
        step=lambda *told: steps.append(told),
    )
    contenders = ["a.onnx in onnxruntime", "a.onnx in openvino", "folder in openvino"]
    assert [(row.name, str(row.shape)) for row in report.rows] == [
        (name, shape) for shape in ("1x8", "4x8", "1x16") for name in contenders
    ]
    assert weighed == [(name, 1, "4x8") for name in contenders]
    assert report.baseline == contenders[0]
    for rows in report.by_shape.values():
        first = rows[0]
        assert first.speedup == 1
        for row in rows:
            assert row.p50_ms is not None
            assert row.p90_ms is not None
            assert 0 < row.p50_ms <= row.p90_ms
            assert row.sequences_per_s == pytest.approx(1000 * row.shape.batch / row.p50_ms)
            assert row.speedup == pytest.approx(first.p50_ms / row.p50_ms)
            assert (row.load_s, row.memory_mb, row.process_memory_mb) == (0.5, 3, 9)
    assert report.rows[0].size_mb == (here / "a.onnx").stat().st_size / 1e6
    assert report.skipped == ()
    done = [told[1] for told in steps]
    assert done == sorted(done)
    assert {told[2] for told in steps} == {2 * 3 + 3 * 3}
    assert steps[-1][1:] == (15, 15)


def test_a_static_graph_runs_its_shape_alone(here: Path, weighed: list[Any]) -> None:
    write_onnx(here / "any.onnx")
    write_onnx(here / "static.onnx", (1, 8))
    models.config().save_pretrained(here)
    options: dict[str, Any] = {"engines": ["onnxruntime"], "rounds": 1}
    report = compare(["any.onnx", "static.onnx"], shapes=[Shape(1, 8), Shape(2, 8)], **options)
    assert weighed == [("any.onnx in onnxruntime", 1, "2x8"), ("static.onnx in onnxruntime", 1, "1x8")]
    *_, dynamic, static = report.rows
    assert dynamic.p50_ms is not None
    assert (static.p50_ms, static.p90_ms, static.sequences_per_s, static.speedup) == (None,) * 4
    assert static.note == "takes 1x8 alone"
    reverse = compare(["static.onnx", "any.onnx"], shapes=[Shape(1, 8), Shape(2, 8)], **options)
    assert reverse.rows[1].speedup is not None
    assert (reverse.rows[3].p50_ms is None, reverse.rows[3].speedup) == (False, None)
    with pytest.raises(ConfigError, match=r"made for inputs of 1x8 alone.* none of 1x9, 4x8.*: --shape 1x8$"):
        compare(["any.onnx", "static.onnx"], shapes=[Shape(1, 9), Shape(4, 8)], **options)


def test_sequences_that_are_too_long(here: Path, weighed: list[Any]) -> None:
    write_onnx(here / "a.onnx")
    models.config().save_pretrained(here)
    options: dict[str, Any] = {"engines": ["onnxruntime"], "rounds": 1}
    with pytest.raises(ConfigError, match=r"1x33 is too long: a\.onnx takes at most 32 tokens"):
        compare(["a.onnx"], shapes=[Shape(1, 32), Shape(1, 33)], **options)
    report = compare(["a.onnx"], **options)
    assert list(report.by_shape) == [Shape(1, 32), Shape(8, 32)]
    assert report.shortened == "Sequences: cut to 32 tokens, the most that a.onnx takes."
    assert report.shortened in report.footnotes()


def test_an_engine_that_refuses_a_model_is_skipped_unless_asked_for(
    here: Path, weighed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_onnx(here / "a.onnx")
    models.config().save_pretrained(here)

    def picky(contender: Contender, threads: int) -> Any:
        if contender.engine in refusing:
            raise EngineError(f"{contender.engine} cannot load it")
        return load(contender, threads)

    monkeypatch.setattr(side_by_side, "load", picky)
    refusing = {"onnxruntime"}
    report = compare(["a.onnx"], shapes=[Shape(1, 8)], rounds=1)
    assert report.baseline == "a.onnx in openvino"
    assert [dataclasses.astuple(each) for each in report.skipped] == [
        ("a.onnx", "onnxruntime", "onnxruntime cannot load it")
    ]
    with pytest.raises(EngineError, match="onnxruntime cannot load it"):
        compare(["a.onnx"], shapes=[Shape(1, 8)], rounds=1, engines=["onnxruntime", "openvino"])
    refusing.add("openvino")
    both = r"^a\.onnx runs in no engine\. onnxruntime cannot load it openvino cannot load it$"
    with pytest.raises(EngineError, match=both):
        compare(["a.onnx"], shapes=[Shape(1, 8)], rounds=1)


def test_a_model_that_no_engine_knows(here: Path) -> None:
    write_onnx(here / "a.onnx", domain="unheard.of")
    with pytest.raises(EngineError, match=r"runs in no engine\. onnxruntime cannot load .* openvino cannot"):
        compare(["a.onnx"])


# Report and chart


def row(model: str = "float", **changes: Any) -> Row:
    standard: dict[str, Any] = {
        "engine": "onnxruntime",
        "path": f"{model}.onnx",
        "shape": Shape(1, 128),
        "p50_ms": 12.34,
        "p90_ms": 1234.5,
        "sequences_per_s": 1.234,
        "speedup": 1.0,
        "load_s": 0.5,
        "size_mb": 438.6,
        "memory_mb": 900.0,
        "process_memory_mb": 1300.0,
        "note": None,
    }
    return Row(model, **standard | changes)


def report_of(*rows: Row, **changes: Any) -> Report:
    standard: dict[str, Any] = {
        "threads": 2,
        "rounds": 3,
        "versions": {"onnxruntime": "1"},
        "baseline": "float in onnxruntime",
        "skipped": (),
    }
    return Report(rows=rows, **standard | changes)


def test_json_of_a_report() -> None:
    report = report_of(row(), row("int8", p50_ms=None, speedup=None))
    data = json.loads(json.dumps(report.to_dict()))
    assert list(data) == ["threads", "rounds", "versions", "baseline", "shortened", "results", "skipped"]
    assert data["results"][0] == {
        "model": "float",
        "engine": "onnxruntime",
        "path": "float.onnx",
        "shape": "1x128",
        "batch": 1,
        "length": 128,
        "p50_ms": 12.34,
        "p90_ms": 1234.5,
        "sequences_per_s": 1.234,
        "speedup": 1.0,
        "load_s": 0.5,
        "size_mb": 438.6,
        "memory_mb": 900.0,
        "process_memory_mb": 1300.0,
        "note": None,
    }
    assert data["results"][1]["p50_ms"] is None


def test_notes_are_numbered() -> None:
    report = report_of(row(), row("b", note="slow"), row("c", note="odd"), row("d", note="slow"))
    assert [report.mark(each) for each in report.rows] == ["", " (1)", " (2)", " (1)"]
    assert report.footnotes() == [
        "(1) slow",
        "(2) odd",
        "Speed-up: over float in onnxruntime at the same shape, by p50.",
    ]


def test_rounding() -> None:
    assert [rounded(each) for each in (None, 0.1234, 12.34, 999.96, 1234.5)] == [
        "-",
        "0.12",
        "12.3",
        "1000.0",
        "1234",
    ]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_chart(here: Path, suffix: str) -> None:
    rows = [
        row(shape=shape, **changes)
        for shape in (Shape(1, 128), Shape(8, 128))
        for changes in ({}, {"model": "int8", "p50_ms": 4.0, "p90_ms": 5.0, "speedup": 3.09, "note": "odd"})
    ]
    missing = dict.fromkeys(("p50_ms", "p90_ms", "speedup"))
    skipping = row("static", shape=Shape(8, 128), note="takes 1x128 alone", **missing)
    file = Path(f"deep/chart{suffix}")
    for _ in range(2):  # the second time over the first
        write_chart(file, report_of(*rows, skipping))
    assert [path.name for path in Path("deep").iterdir()] == [file.name]
    if suffix == ".png":
        assert file.read_bytes().startswith(b"\x89PNG")
        from matplotlib.image import imread

        pixels = imread(file)
        assert pixels.shape[1] == 1200
        assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 10
    else:
        text = file.read_text(encoding="utf-8")
        for part in ("int8 in onnxruntime (1)", "4.00 ms   3.09x", "8 sequences of 128 tokens", "(1) odd"):
            assert part in text
        for part in ("static in onnxruntime (2)", "not run", "(2) takes 1x128 alone"):
            assert text.count(f">{part}<") == 1


def test_a_chart_that_cannot_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    Path("folder.png").mkdir()
    for file, message in {
        "chart.jpg": r"must end in \.png or \.svg",
        "folder.png": "is there and not a file",
        "file/chart.png": "Cannot write file/chart.png: Not a directory",
        "/proc/chart.png": "Cannot write /proc/chart.png",
    }.items():
        with pytest.raises(ReportError, match=message):
            check_can_plot(Path(file))
    check_can_plot(Path("new/chart.PNG"))
    assert sorted(path.name for path in here.iterdir()) == ["file", "folder.png"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ReportError, match=r'The chart needs matplotlib: pip install "qdqpatch\[report\]"'):
        check_can_plot(Path("chart.png"))


def test_nothing_is_imported_before_it_is_needed() -> None:
    lazy = {"onnx", "onnxruntime", "openvino", "matplotlib"}
    code = f"import sys, qdqpatch.cli; sys.exit(' '.join({lazy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""
