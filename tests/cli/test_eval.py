"""`qdqpatch eval`: its table, its JSON, its exit codes, and errors in one line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import tiny_tasks
from click.testing import Result
from commands import assert_fails, invoke
from evaluations import HEAD, TEXTS, always, features, loaded, varied, write, write_data
from exported import write_onnx

from qdqpatch.engines.loading import Skipped
from qdqpatch.engines.vnni import saturates
from qdqpatch.evaluation.predicting import predict
from qdqpatch.evaluation.result import Evaluation, EvaluationRow
from qdqpatch.tasks.base import Columns, DataSource
from qdqpatch.tasks.metrics import mean
from qdqpatch.tasks.text_classification import TextClassification

pytestmark = pytest.mark.usefixtures("traced_once")

Eval = Callable[..., Result]
DATA = ("--data", "dev.tsv")


@pytest.fixture
def evaluate(here: Path) -> Eval:
    """Run the command beside `a`, right in 5 of the 10 texts of dev.tsv, and `b`, right in 4."""
    write("a", always(0))
    write("b", always(1))
    write_data(0, 1, 0, 1, 2, 0, 1, 0, 1, 0)
    return lambda *arguments: invoke("eval", *arguments)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Evaluate nothing; collect what would have been evaluated."""
    calls: list[Any] = []

    def record(*arguments: Any, **options: Any) -> Evaluation:
        calls.append((arguments, options))
        row = EvaluationRow(
            "a", "openvino", "a", {"accuracy": mean("accuracy", [1.0])}, None, 0.5, "computes [so]"
        )
        return Evaluation(
            "text-classification", "d", 1, "accuracy", (row,), (Skipped("[b]", "torch", "[why]"),)
        )

    monkeypatch.setattr(sys.modules["qdqpatch.evaluation.evaluate"], "evaluate", record)
    return calls


def test_the_table(evaluate: Eval) -> None:
    result = evaluate("a", "b", "a", *DATA)
    assert (result.exit_code, result.stderr) == (0, "")
    title, header, _, first, second, third, note, close, names, _, *figures = (
        line.strip() for line in result.stdout.splitlines() if line.strip()
    )
    assert close == "How close to a in torch, with the 95% confidence interval"
    assert names.split() == ["Model", "Engine", "Figure", "Value"]
    assert [line.split() for line in figures[:1]] == [
        ["b", "torch", "unchanged", "predictions", "0.00", "[0.00,", "0.00]"]
    ]
    assert len(figures) == 4
    assert title == "text-classification, 10 examples of dev.tsv"
    assert header.split() == ["Model", "Engine", "accuracy", "Difference", "Drop", "%", "Seconds"]
    assert first.split()[:3] == ["a", "torch", "50.00"]
    assert len(first.split()) == 4
    model, engine, accuracy, difference, low, high, drop, _ = second.split()
    assert (model, engine, accuracy, difference, drop) == ("b", "torch", "40.00", "-10.00", "20.00")
    assert float(low.strip("[,")) < -10 < float(high.strip("]"))
    assert (low[:2], high[0]) == ("[-", "+")
    assert third.split()[:-1] == ["a", "(2)", "torch", "50.00", "+0.00", "[+0.00,", "+0.00]", "0.00"]
    assert note == (
        "Difference: of accuracy to a in torch, with the 95% confidence interval by a paired bootstrap over "
        "the examples (1000 resamples)."
    )


def test_the_table_of_one_model_has_no_differences(evaluate: Eval) -> None:
    result = evaluate("a", *DATA, "--samples", 1)
    assert result.exit_code == 0
    title, header, _, row = (line.strip() for line in result.stdout.splitlines() if line.strip())
    assert title == "text-classification, 1 example of dev.tsv"
    assert header.split() == ["Model", "Engine", "accuracy", "Seconds"]
    assert row.split()[:2] == ["a", "torch"]


def test_notes_and_what_was_skipped(idle: list[Any]) -> None:
    result = invoke("eval", "a", "--data", "d")
    assert result.exit_code == 0
    assert result.stderr == "Skipped [b] in torch: [why]\n"
    *_, row, note = (line.strip() for line in result.stdout.splitlines() if line.strip())
    assert row.split() == ["a", "openvino", "(1)", "100.00", "0.5"]
    assert note == "(1) computes [so]"
    assert invoke("eval", "a", "--data", "d", "--quiet").stderr == ""


def test_the_largest_drop_that_is_allowed(evaluate: Eval) -> None:
    within = evaluate("a", "b", *DATA, "--max-drop", 20)  # from 50 to 40
    assert (within.exit_code, within.stderr) == (0, "")
    beyond = evaluate("a", "b", "a", *DATA, "--max-drop", 19.9, "--json")
    assert beyond.exit_code == 1
    problem = "accuracy falls more than the 19.9% of --max-drop"
    assert beyond.stderr == f"Error: {problem}: b in torch by 20.00% (from 50.00 to 40.00).\n"
    assert [row["drop_percent"] for row in json.loads(beyond.stdout)["results"]] == [None, 20, 0]
    assert evaluate("b", "a", *DATA, "--max-drop", 0).exit_code == 0  # a is better
    assert evaluate("a", "a", *DATA, "--max-drop", 0).exit_code == 0


def test_a_rise_of_perplexity_is_a_drop(here: Path) -> None:
    write("small", models.build("BertForMaskedLM"))
    write("int4", models.build("BertForMaskedLM", initializer_range=0.5))
    Path("texts.txt").write_text("the cat sat on the mat\na dog and the cats\nthe mat\n" * 5)
    options = ("--data", "texts.txt", "--max-drop", 0)
    codes = {order: invoke("eval", *order, *options) for order in (("small", "int4"), ("int4", "small"))}
    assert sorted(result.exit_code for result in codes.values()) == [0, 1]
    (failed,) = (result for result in codes.values() if result.exit_code)
    (passed,) = (result for result in codes.values() if not result.exit_code)
    assert failed.stderr.startswith("Error: perplexity rises more than the 0% of --max-drop: ")
    before, after = failed.stderr.split("(from ")[1].rstrip(").\n").split(" to ")
    assert float(before) < float(after)
    assert " -" in passed.stdout


def test_one_model_cannot_fall_behind(evaluate: Eval) -> None:
    result = evaluate("a", *DATA, "--max-drop", 1)
    assert result.exit_code == 1
    assert result.stderr == "Error: --max-drop compares models, and a in torch is the only one.\n"


def test_options_reach_the_library(idle: list[Any]) -> None:
    columns = ("--text-column", "t", "--text-pair-column", "p", "--label-column", "l")
    running = ("--engine", "torch", "--engine", "openvino", "--batch-size", 4, "--threads", 2)
    drawn = ("--samples", 7, "--seed", 3, "--max-length", 64)
    task = ("--task", "question-answering", "--doc-stride", 16, "--max-answer-length", 9)
    assert invoke("eval", "a", "b", "--data", "d.csv", *columns, *running, *drawn, *task).exit_code == 0
    (arguments, options), *_ = idle
    source = DataSource("d.csv", Columns("t", "p", "l"))
    assert arguments == (("a", "b"), "question-answering", source, 7)
    assert callable(options.pop("step"))
    assert options == {
        "seed": 3,
        "max_length": 64,
        "options": {"stride": 16, "longest_answer": 9},
        "batch_size": 4,
        "engines": ("torch", "openvino"),
        "threads": 2,
    }


def test_defaults(idle: list[Any]) -> None:
    assert invoke("eval", "a", "--data", "d.csv").exit_code == 0
    assert invoke("eval", "a", "--data", "nyu-mll/glue", "--subset", "sst2").exit_code == 0
    assert invoke("eval", "a", "--data", "nyu-mll/glue", "--split", "test").exit_code == 0
    (file, options), (hub, _), (split, _) = idle
    assert file == (("a",), None, DataSource("d.csv"), None)
    assert hub[2] == DataSource("nyu-mll/glue", Columns(), "validation", "sst2")
    assert split[2].split == "test"
    del options["step"]
    assert options == {
        "seed": 0,
        "max_length": None,
        "options": {},
        "batch_size": 32,
        "engines": (),
        "threads": None,
    }


def test_errors_are_one_line(evaluate: Eval) -> None:
    write_onnx(Path("bare.onnx"))
    write_onnx(Path("a/model.onnx"), (1, 6))
    write("two", models.build(HEAD, num_labels=2))
    write_data(0, 3, name="wrong.tsv")
    Path("bad.onnx").write_bytes(b"nonsense")
    bare = ("--engine", "onnxruntime")
    for arguments, fragment in (
        (["missing.onnx", *DATA], "There is no file missing.onnx."),
        (["./missing", *DATA], "There is no folder ./missing."),
        (["a", "--data", "none.tsv"], "There is no file none.tsv."),
        (["b", "--data", "wrong.tsv"], "wrong.tsv, line 3, has the label '3'; the model's are 0 (LABEL_0)"),
        (["bare.onnx", *DATA, "--task", "text-classification"], "There is no config.json beside bare.onnx."),
        (["bare.onnx", *DATA, *bare, "--engine", "torch"], "torch can run none of these models"),
        (["a", "two", *DATA], "a has 3 labels and two has 2: they cannot be compared."),
        (["b", *DATA, "--task", "fill-mask"], "b is a model for text-classification, not for fill-mask."),
        (["a", *DATA, *bare], "a in onnxruntime is made for sequences of 6 tokens"),
        (["b", "bad.onnx", *DATA], "bad.onnx runs in no engine."),
        (
            ["b", *DATA, "--split", "test"],
            "--split and --subset are for data sets on the hub; dev.tsv is none.",
        ),
    ):
        assert_fails(evaluate(*arguments), fragment)


def test_wrong_usage(idle: list[Any]) -> None:
    for arguments, fragment in (
        ([*DATA], "Missing argument 'MODEL...'"),
        (["a"], "Missing option '--data'"),
        (["a", *DATA, "--max-drop", "-1"], "'--max-drop': -1.0 is not in the range x>=0."),
        (["a", *DATA, "--max-drop", "nan"], "'--max-drop': 'nan' is not a finite number."),
        (["a", *DATA, "--samples", "0"], "'--samples': 0 is not in the range x>=1."),
        (["a", *DATA, "--batch-size", "0"], "'--batch-size': 0 is not in the range x>=1."),
        (["a", *DATA, "--engine", "tvm"], "'--engine': 'tvm' is not one of"),
        (["a", *DATA, "--task", "poetry"], "'--task': 'poetry' is not one of"),
    ):
        assert_fails(invoke("eval", *arguments), fragment, code=2)
    assert idle == []


def test_the_help_has_sections() -> None:
    text = invoke("eval", "--help").stdout
    places = [text.index(f"\n{section}:\n") for section in ("Data", "Running", "Output", "Options")]
    assert places == sorted(places)
    assert "qdqpatch eval CKPT OUT --data dev.tsv" in invoke("--help").stdout


@pytest.mark.slow
def test_from_float_to_exported(here: Path) -> None:
    write("float", varied())
    Path("calib.txt").write_text("\n".join(TEXTS))
    for arguments in (
        ("convert", "float", "int8", "--calib", "calib.txt", "--max-length", 16),
        ("export", "int8", "ort", "--no-check"),
        ("export", "int8", "ov", "--target", "openvino", "--shape", "4x12", "--no-check"),
    ):
        assert invoke(*arguments).exit_code == 0, arguments
    task = TextClassification(tiny_tasks.tokenizer(), models.config(HEAD))
    said = predict(loaded("float", task).run, task, features(task, *TEXTS))
    labels = [int(outputs["logits"].argmax()) for outputs in said]
    assert len(set(labels)) > 1
    write_data(*labels, *labels)
    names = ["float", "int8", "ort"]
    expected = {("int8", "torch"), ("ort", "onnxruntime")}
    if not saturates():  # OpenVINO's own kernels do where ONNX Runtime's do, and its accuracy falls by that
        names.append("ov/openvino/openvino_model.xml")
        expected.add(("openvino_model.xml", "openvino"))
    result = invoke("eval", *names, *DATA, "--json", "--max-drop", 25)
    assert result.exit_code == 0, result.output
    first, *others = json.loads(result.stdout)["results"]
    assert first["metrics"] == {"accuracy": 100}
    found = {(row["model"], row["engine"]): row for row in others}
    assert found.keys() >= expected
    for row in others:
        assert row["difference"] == pytest.approx(row["metrics"]["accuracy"] - 100)
        assert row["interval"][0] <= row["difference"] <= row["interval"][1] <= 0
    # Labels of another order are those of a model that is wrong everywhere.
    write_data(*[(label + 1) % 3 for label in labels])
    options = ("--engine", "onnxruntime", "--json")
    (wrong,) = json.loads(invoke("eval", "ort/onnx/model.onnx", *DATA, *options).stdout)["results"]
    assert wrong["metrics"]["accuracy"] <= 25
