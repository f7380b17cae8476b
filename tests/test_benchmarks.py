"""The benchmarks run, here on a tiny BERT, and their tables have every row that the README quotes."""

import gzip
import inspect

import models
import pytest
import torch
from checkpoints import write_tokenizer
from models import config
from pytorch_quantization.calib import HistogramCalibrator
from transformers import BertModel

import qdqpatch

pytestmark = pytest.mark.usefixtures("traced_once")


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


@pytest.fixture
def calibration_time(benchmark_module, monkeypatch):
    module = benchmark_module("calibration_time")
    few_bins = 256  # the toolkit's search takes seconds for as many as the benchmark asks for
    monkeypatch.setattr(
        module, "HistogramCalibrator", lambda *args, **kwargs: HistogramCalibrator(*args, num_bins=few_bins)
    )
    return module


def test_time_of_calibration(calibration_time):
    models = calibration_time.contenders(config())
    batches = calibration_time.inputs(config(), 2, 8)
    rows = calibration_time.measure_collection(models, batches, rounds=1)
    assert [row[0] for row in rows] == ["float forward passes", "qdqpatch", "pytorch-quantization"]
    assert rows[0][-1] == "1.00"

    found = calibration_time.collect(models["qdqpatch"], batches)
    searches = dict(calibration_time.measure_searches(models, found))
    assert [name for name in searches if name.startswith("qdqpatch")] == [
        "qdqpatch, max, all quantizers",
        "qdqpatch, percentile, all quantizers",
        "qdqpatch, mse, all quantizers",
        "qdqpatch, entropy, all quantizers",
        "qdqpatch, all four methods, all quantizers",
    ]
    assert len(searches) == 7
    assert all(time.endswith(" s") for time in searches.values())


def test_calibration_is_timed_on_the_same_quantizers(calibration_time):
    models = calibration_time.contenders(config())
    batches = calibration_time.inputs(config(), 2, 8)
    calibration_time.collect_as_toolkit(models["pytorch-quantization"], batches)
    counted = {
        path
        for path, quantizer in calibration_time.named_quantizers(models["pytorch-quantization"])
        if isinstance(quantizer._calibrator, HistogramCalibrator)
        and quantizer._calibrator._calib_hist is not None
    }
    assert counted == set(calibration_time.collect(models["qdqpatch"], batches))


def test_memory_of_calibration(calibration_time, monkeypatch):
    monkeypatch.setattr(calibration_time, "SHAPE", (1, 8))
    for name in ("float forward passes", "qdqpatch", "pytorch-quantization"):
        assert calibration_time.peak_memory(config(), name) > 10


@pytest.fixture
def tasks(benchmark_module):
    return benchmark_module("tasks")


@pytest.mark.parametrize(
    ("start", "end", "best"),
    [
        ([0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 0.0, 5.0], (14.0, 1, 3)),
        ([0.0, 0.0, 0.0, 9.0], [8.0, 0.0, 0.0, 5.0], (14.0, 3, 3)),  # an end before the start does not count
        ([-3.0, -2.0], [-2.0, -3.0], (-5.0, 0, 0)),  # nor does the 0 of spans that are left out
    ],
)
def test_the_best_answer_of_a_window(tasks, start, end, best):
    assert tasks._best_span(torch.tensor(start), torch.tensor(end)) == best


def test_an_answer_has_at_most_so_many_tokens(tasks):
    longest = tasks.LONGEST_ANSWER
    start, end = torch.zeros(longest + 10), torch.zeros(longest + 10)
    start[0], end[longest - 1], end[longest] = 2, 2, 3
    assert tasks._best_span(start, end) == (4.0, 0, longest - 1)


def test_a_folder_without_models_is_named(tasks, tmp_path):
    with pytest.raises(SystemExit, match="has no folders `models` and `data`"):
        tasks.shared_folder([str(tmp_path)])


def test_tasks_have_what_the_figures_need(tasks):
    if not (tasks.SHARED / "models").is_dir() or not (tasks.SHARED / "data").is_dir():
        pytest.skip("the fine-tuned models and their data are not beside the repository")
    task = tasks.Sst2(tasks.shared_folder([]))
    batches = task.calibration_batches(4, batch_size=2)
    assert [set(batch) >= {"input_ids", "attention_mask"} for batch in batches] == [True, True]
    assert task.evaluate(task.load(), limit=16)["accuracy"] > 75


def test_a_row_of_accuracy_is_named_by_its_steps(benchmark_module):
    accuracy = benchmark_module("accuracy")
    plain = accuracy.options("auto")
    assert [step for step, wanted in plain.items() if wanted] == ["method"]
    assert accuracy.options("auto-fuse") == {**plain, "fuse_inputs": True}
    assert accuracy.options("percentile-99.9")["percentile"] == 99.9
    for method in accuracy.METHODS:
        inspect.signature(qdqpatch.ptq).bind(None, [], **accuracy.options(method))


def test_cost_of_a_training_step(benchmark_module, monkeypatch):
    training_cost = benchmark_module("training_cost")
    monkeypatch.setattr(training_cost, "SHAPE", (2, 8))
    steps = {name: make(config()) for name, make in training_cost.CONTENDERS.items()}
    rows = training_cost.measure(steps, rounds=1)
    assert [row[0] for row in rows] == list(training_cost.CONTENDERS)
    assert rows[0][-1] == "1.00"


@pytest.mark.slow
def test_what_training_gains(benchmark_module, monkeypatch, tmp_path):
    training = benchmark_module("training")
    setting = training.Setting("tiny", "text-classification", 16, "tsv.gz", epochs=0.5)
    monkeypatch.setattr(training, "METHODS", ("max", "auto-shift-refine"))
    model = tmp_path / "models" / "minilm-tiny"
    models.build("BertForSequenceClassification").save_pretrained(model)
    write_tokenizer(model)
    data = tmp_path / "data" / "tiny"
    data.mkdir(parents=True)
    lines = [
        "sentence\tlabel",
        *(f"the cat sat {'on ' * (number % 5)}\t{number % 3}" for number in range(24)),
    ]
    for part in ("train", "dev"):
        (data / f"{part}.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    work = tmp_path / "work"
    modes = ["distilled QAT"]
    bench = training.Bench(setting, tmp_path, work)
    first = bench.measure(modes, seeds=[])
    assert list(first) == ["float", "PTQ, max", "PTQ, auto-shift-refine"]
    found = bench.measure(modes, seeds=[0, 1])
    assert sorted(path.name for path in work.iterdir() if "." not in path.name) == [
        "auto-shift-refine", "distilled-QAT-0", "distilled-QAT-1", "max",
    ]  # fmt: skip
    assert list(found) == [*first, *modes]
    assert {kind: found[kind] for kind in first} == first
    rows = {row[0]: row[1:] for row in training.rows_of(found)}
    for place, engine in enumerate(("torch", "onnxruntime")):
        values = [run[engine]["accuracy"] for run in found["distilled QAT"]]
        mean = sum(values) / 2
        assert rows["distilled QAT"][place] == f"{mean:.1f} ({min(values):.1f}-{max(values):.1f})"
        floating = found["float"][0]["torch"]["accuracy"]
        assert rows["distilled QAT"][2 + place] == f"{100 * (mean / floating - 1):+.1f}%"
    assert rows["float"] == (f"{floating:.1f}", "", "", "")
    # What is there is not made again.
    monkeypatch.setattr(training, "evaluate", None)
    monkeypatch.setattr(training, "run_job", None)
    assert bench.measure(modes, seeds=[0, 1]) == found
