"""Models evaluated side by side, on the same data."""

from pathlib import Path
from typing import Any

import models
import pytest
import torch
from evaluations import HEAD, always, write, write_data
from exported import write_onnx

from qdqpatch.errors import ConfigError, DataError, EngineError
from qdqpatch.evaluation import evaluate as module
from qdqpatch.evaluation.evaluate import evaluate
from qdqpatch.tasks.base import Columns, DataSource

ONNX: dict[str, Any] = {"engines": ["onnxruntime"]}


@pytest.fixture
def data(here: Path) -> DataSource:
    """Ten texts: 5 of label 0, 4 of label 1, 1 of label 2."""
    return DataSource(write_data(0, 1, 0, 1, 2, 0, 1, 0, 1, 0))


def test_metrics_and_their_differences(data: DataSource) -> None:
    for label in range(3):
        write(f"always{label}", always(label))
    found = evaluate(["always0", "always1", "always0"], None, data)
    assert (found.task, found.data, found.examples, found.metric) == (
        "text-classification",
        "dev.tsv",
        10,
        "accuracy",
    )
    first, second, third = found.rows
    assert [(row.model, row.engine, row.path) for row in found.rows] == [
        ("always0", "torch", "always0"),
        ("always1", "torch", "always1"),
        ("always0 (2)", "torch", "always0"),
    ]
    assert [row.metrics["accuracy"].value for row in found.rows] == [50, 40, 50]
    assert first.difference is None
    assert second.difference is not None
    assert (second.difference.value, second.difference.drop) == (-10, 20)
    assert second.difference.interval is not None
    low, high = second.difference.interval
    assert -100 < low < -10 < high < 100
    assert third.difference is not None
    assert (third.difference.value, third.difference.interval) == (0, (0, 0))
    assert all(row.seconds > 0 for row in found.rows)
    assert [found.behind(percent) for percent in (19.9, 20)] == [[second], []]


def test_as_data(data: DataSource) -> None:
    write("a", always(0))
    write("b", always(2))
    found = evaluate(["a", "b"], None, data, seed=1)
    after = found.rows[1].difference
    assert after is not None
    assert found.to_dict() == {
        "task": "text-classification",
        "data": "dev.tsv",
        "labelled": True,
        "examples": 10,
        "metric": "accuracy",
        "confidence": 0.95,
        "resamples": 1000,
        "results": [
            {
                "model": "a",
                "engine": "torch",
                "path": "a",
                "metrics": {"accuracy": 50},
                "difference": None,
                "interval": None,
                "drop_percent": None,
                "seconds": found.rows[0].seconds,
                "note": None,
                "closeness": {},
                "exactness": None,
            },
            {
                "model": "b",
                "engine": "torch",
                "path": "b",
                "metrics": {"accuracy": 10},
                "difference": -40,
                "interval": list(after.interval or ()),
                "drop_percent": 80,
                "seconds": found.rows[1].seconds,
                "note": None,
                "closeness": {figure.metric.name: figure.to_dict() for figure in found.rows[1].closeness},
                "exactness": None,
            },
        ],
        "skipped": [],
    }


def test_all_models_are_given_the_same(data: DataSource, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a")
    given: list[Any] = []
    predict = module.predict

    def record(run: Any, task: Any, features: Any, batch_size: int, step: Any) -> Any:
        given.append((features, batch_size))
        return predict(run, task, features, batch_size, step)

    monkeypatch.setattr(module, "predict", record)
    evaluate(["a", "a"], None, data, 4, batch_size=3, seed=5)
    (features, batch_size), (others, _) = given
    assert features is others
    assert (len(features), batch_size) == (4, 3)
    evaluate(["a"], None, data, 4, seed=6)
    assert given[2][0] != features  # other examples
    evaluate(["a"], None, data, 40, max_length=4)
    assert len(given[3][0]) == 10
    assert max(len(row["input_ids"]) for row in given[3][0]) == 4


def test_a_graph_of_one_batch_gets_that(data: DataSource, monkeypatch: pytest.MonkeyPatch) -> None:
    write_onnx(Path("fixed.onnx"), (4, 12))
    write_onnx(Path("free.onnx"))
    write("a", models.build(HEAD, num_labels=16))  # as many as these graphs have outputs
    found = evaluate(["free.onnx", "fixed.onnx", "a"], None, data, engines=["onnxruntime", "torch"])
    free, fixed, _ = found.rows
    assert free.metrics["accuracy"].numerators.tolist() == fixed.metrics["accuracy"].numerators.tolist()
    write_onnx(Path("short.onnx"), (4, 6))
    with pytest.raises(ConfigError, match=r"^short\.onnx in onnxruntime is made for sequences of 6 tokens"):
        evaluate(["free.onnx", "short.onnx", "a"], None, data, engines=["onnxruntime", "torch"])
    evaluate(["free.onnx", "short.onnx", "a"], None, data, max_length=6, engines=["onnxruntime", "torch"])


def test_embeddings_are_compared_with_the_first_ones(here: Path) -> None:
    write("float", models.float_model())
    write("int8", models.calibrated())
    Path("texts.txt").write_text("the cat\na dog and the cats\nthe mat\n")
    found = evaluate(["float", "int8"], None, DataSource("texts.txt"))
    assert (found.task, found.metric) == ("feature-extraction", "cosine")
    same, near = (row.metrics["cosine"] for row in found.rows)
    assert same.value == pytest.approx(1, abs=1e-12)
    assert 0.9 < near.value < 1 - 1e-6
    with pytest.raises(ConfigError, match=r"name a model to compare them with"):
        evaluate(["float"], None, DataSource("texts.txt"))


def test_what_is_below_a_head_has_embeddings_too(here: Path) -> None:
    write("masked", models.float_model("BertForMaskedLM"))  # without a pooler, which embeddings do not need
    Path("texts.txt").write_text("the cat\nthe mat\n")
    _, row = evaluate(["masked", "masked"], "feature-extraction", DataSource("texts.txt")).rows
    assert row.metrics["cosine"].value == pytest.approx(1, abs=1e-12)


def test_perplexity_of_masked_words(here: Path) -> None:
    write("float", models.float_model("BertForMaskedLM"))
    Path("texts.txt").write_text("the cat sat on the mat\na dog and the cats\nthe mat\n" * 5)
    found = evaluate(["float", "float"], None, DataSource("texts.txt"), seed=2)
    assert found.metric == "perplexity"
    first, second = (row.metrics["perplexity"] for row in found.rows)
    assert first.value == second.value > 1  # the same words are masked
    assert (
        evaluate(["float"], None, DataSource("texts.txt"), seed=3).rows[0].metrics["perplexity"].value
        != first.value
    )


def test_a_model_that_gives_nan(data: DataSource) -> None:
    broken = always(0)
    with torch.no_grad():
        # dog, in half of the texts; NaN itself would not be loaded
        broken.bert.embeddings.word_embeddings.weight[7] = torch.finfo(torch.float32).max
    write("broken", broken)
    with pytest.raises(
        EngineError,
        match=r"^broken in torch gives NaN for 5 of 10 sequences: check its weights and ranges\.$",
    ):
        evaluate(["broken"], None, data)


def test_outputs_of_another_shape(data: DataSource) -> None:
    write("a")
    write_onnx(Path("b.onnx"))
    problem = r"b\.onnx in onnxruntime gives logits of shape \(16,\) where a in torch gives \(3,\)"
    with pytest.raises(ConfigError, match=rf"^{problem}: they cannot be compared\.$"):
        evaluate(["a", "b.onnx"], None, data, engines=["torch", "onnxruntime"])


def test_what_an_engine_cannot_load_is_skipped_unless_it_was_asked_for(
    data: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_onnx(Path("b.onnx"))
    write("a", models.build(HEAD, num_labels=16))
    load = module.load

    def picky(contender: Any, *arguments: Any) -> Any:
        if contender.engine == "openvino":
            raise EngineError("openvino cannot load it")
        return load(contender, *arguments)

    monkeypatch.setattr(module, "load", picky)
    found = evaluate(["a", "b.onnx"], None, data)
    assert [row.name for row in found.rows] == ["a in torch", "b.onnx in onnxruntime"]
    assert [(skipped.model, skipped.engine, skipped.reason) for skipped in found.skipped] == [
        ("b.onnx", "openvino", "openvino cannot load it")
    ]
    with pytest.raises(EngineError, match=r"^openvino cannot load it$"):
        evaluate(["a", "b.onnx"], None, data, engines=["torch", "onnxruntime", "openvino"])


def test_progress(data: DataSource) -> None:
    write("a")
    steps: list[tuple[str, int, int]] = []
    evaluate(["a", "a"], None, data, batch_size=5, step=lambda *told: steps.append(told))
    assert [text for text, *_ in steps[:3]] == ["Reading", "Loading a in torch", "Loading a (2) in torch"]
    assert steps[3:] == [
        *(("Running a in torch", done, 20) for done in (0, 5, 10)),
        *(("Running a (2) in torch", done, 20) for done in (10, 15, 20)),
    ]


def test_threads_are_put_back(data: DataSource, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a")
    before = torch.get_num_threads()
    during = []
    load = module.load
    monkeypatch.setattr(
        module, "load", lambda *arguments: (during.append(torch.get_num_threads()), load(*arguments))[1]
    )
    evaluate(["a"], None, data, threads=before + 1)
    assert (during, torch.get_num_threads()) == ([before + 1], before)


def test_data_is_read_before_models_are_loaded(data: DataSource, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a")
    monkeypatch.setattr(module, "load", None)
    with pytest.raises(DataError, match=r"^dev\.tsv has no column 'labels'"):
        evaluate(["a"], None, DataSource(data.name, Columns(label="labels")))


def test_closeness_beside_labels(data: DataSource) -> None:
    write("a", always(0))
    write("b", always(2))
    _, row = evaluate(["a", "b"], None, data).rows
    divergence, unchanged = row.closeness
    assert (unchanged.metric.name, unchanged.metric.value, unchanged.interval) == (
        "unchanged predictions",
        0,
        (0, 0),
    )
    assert divergence.metric.value > 0.1


def test_an_embedder_finds_its_documents(here: Path) -> None:
    write("float", models.float_model())
    write("int8", models.calibrated())
    lines = ["query\tdocument", "the cat\tthe cat", "a dog\ta dog", "the mat\tthe mat", "the cat\tthe cat"]
    Path("pairs.tsv").write_text("\n".join(lines), encoding="utf-8")
    found = evaluate(["float", "int8"], None, DataSource("pairs.tsv"))
    assert list(found.rows[0].metrics) == ["cosine", "recall@1", "recall@10", "MRR"]
    assert found.rows[0].metrics["MRR"].value == 1  # each text is its own document
    assert found.rows[0].metrics["recall@1"].value == 100
    assert [figure.metric.name for figure in found.rows[1].closeness] == [
        "lowest",
        "5th percentile",
        "cosine",
    ]  # too few to say something of neighbours


def test_an_embedder_on_scores(here: Path) -> None:
    write("float", models.float_model())
    lines = ["sentence1\tsentence2\tscore", "the cat\tthe cat\t5", "a dog\tthe mat\t1.5", "mats\ta cat\t2"]
    Path("sts.tsv").write_text("\n".join(lines), encoding="utf-8")
    found = evaluate(["float"], None, DataSource("sts.tsv"))  # which needs no model to compare with
    assert list(found.rows[0].metrics) == ["Pearson", "Spearman"]
    Path("sts.tsv").write_text("\n".join([*lines, "a cat\ta dog\tmuch"]), encoding="utf-8")
    with pytest.raises(DataError, match=r"line 5, has 'much' in 'score', which is no number"):
        evaluate(["float"], None, DataSource("sts.tsv"))
