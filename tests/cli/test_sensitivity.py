"""`qdqpatch sensitivity`: tables, JSON, the configuration and the plot, and errors in one line."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import models
import pytest
import sensitivities
from click.testing import Result
from commands import assert_fails, invoke
from transformers import AutoModelForSequenceClassification

import qdqpatch
from qdqpatch import QDQConfig
from qdqpatch.evaluation.predicting import batches
from qdqpatch.patching.apply import enabled_quantizers
from qdqpatch.sensitivity import find_units, measure, search

BAD = ("layer 1, attention add", "layer 0, feed-forward")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sensitivities.write_classifier(tmp_path_factory.mktemp("checkpoints") / "float")


@pytest.fixture
def run(checkpoint: Path, here: Path) -> Callable[..., Result]:
    """Run the command on the float checkpoint in a folder with data and a configuration with bad units."""
    examples = sensitivities.labelled()
    sensitivities.write_data(Path("dev.tsv"), examples)
    sensitivities.write_data(Path("texts.tsv"), examples, with_labels=False)
    Path("bad.json").write_text(json.dumps(sensitivities.ruin(*BAD).to_dict()))
    return lambda *options: invoke("sensitivity", checkpoint, *options)


def expected_model() -> tuple[object, object]:
    """Return what the command makes of the float checkpoint and the bad configuration, and the task."""
    task = sensitivities.task()
    task.max_length = 32
    model = qdqpatch.quantize(sensitivities.classifier(), sensitivities.ruin(*BAD))
    features = task.features(sensitivities.labelled())
    return qdqpatch.calibrate(model, batches(task, features, 16), method="auto"), task


def test_everything_at_once(run, checkpoint: Path) -> None:
    options = ("--config", "bad.json", "--max-drop", 0, "--out", "deep/mixed.json", "--plot", "plot.svg")
    result = run("--data", "dev.tsv", *options, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    model, task = expected_model()
    costs = measure(model, task, sensitivities.labelled())
    found = search(model, task, sensitivities.labelled(), costs, 0.0)
    assert data == {
        "checkpoint": str(checkpoint),
        "costs": json.loads(json.dumps(costs.to_dict())),
        "search": json.loads(json.dumps(found.to_dict())),
    }
    assert set(data["search"]["best"]["float_units"]) == set(BAD)
    lines = result.stderr.splitlines()
    assert lines == [
        "Calibrated with 32 of 32 examples of the data.",
        "Wrote plot.svg.",
        "Wrote deep/mixed.json, for: qdqpatch convert FLOAT_CKPT OUT --config deep/mixed.json --calib FILE",
    ]
    assert "chosen: 2 in float" in Path("plot.svg").read_text(encoding="utf-8")
    assert QDQConfig.from_json_file("deep/mixed.json") == found.config

    converted = invoke("convert", checkpoint, "out", "--config", "deep/mixed.json", "--calib", "dev.tsv")
    assert converted.exit_code == 0, converted.output
    on = set(enabled_quantizers(AutoModelForSequenceClassification.from_pretrained("out")))
    off = {path for name in BAD for path in sensitivities.unit(model, name).quantizers}
    assert on == set(enabled_quantizers(model)) - off


def test_the_tables(run) -> None:
    result = run("--data", "dev.tsv", "--config", "bad.json", "--max-drop", 0)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines() if line.strip()]
    assert lines[0] == "Cost of quantizing each alone: KL divergence, 32 examples"
    assert lines[1] == "Unit Quantizers Cost Share of all costs"
    assert {re.sub(r" \d+ \S+ \S+$", "", line) for line in lines[3:5]} == set(BAD)
    assert lines[11] == "Drop of at most 0%, 32 examples"
    assert lines[12] == "Units in float accuracy Drop"
    assert "2 of 8 100.00 0.00% chosen" in lines
    assert lines[-2] == "8 of 8 100.00 0.00%"
    assert re.fullmatch("To leave in float: .*; .* \\(accuracy 100.00, float 100.00\\).", lines[-1])
    assert all(name in lines[-1] for name in BAD)


def test_ranking_alone_needs_no_labels(run) -> None:
    labelled, unlabelled = (
        run("--data", name, "--text-column", "text", "--json") for name in ("dev.tsv", "texts.tsv")
    )
    assert labelled.exit_code == 0, labelled.output
    assert labelled.stdout == unlabelled.stdout
    assert json.loads(labelled.stdout)["search"] is None
    assert unlabelled.stderr == "Calibrated with 32 of 32 examples of the data.\n"


def test_ranking_by_the_metric(run) -> None:
    result = run("--data", "dev.tsv", "--config", "bad.json", "--metric", "--json")
    assert result.exit_code == 0, result.output
    costs = json.loads(result.stdout)["costs"]
    model, task = expected_model()
    assert costs == json.loads(
        json.dumps(measure(model, task, sensitivities.labelled(), by_metric=True).to_dict())
    )
    assert costs["measure"] == "drop of accuracy in percent"


def test_without_labels_changed_predictions_count_and_it_says_so(run) -> None:
    given = ("--text-column", "text", "--config", "bad.json", "--max-drop", 0)
    result = run("--data", "texts.tsv", *given)
    assert result.exit_code == 0, result.output
    assert (
        "There are no labels, so --max-drop counts predictions that change. (texts.tsv has no column of "
        "labels by a usual name" in result.stderr
    )
    assert "Unchanged predictions" in result.stdout
    assert_fails(run("--data", "texts.tsv", *given[:4], "--metric"), "texts.tsv has no column of labels")


def test_a_checkpoint_that_is_calibrated(run) -> None:
    model = sensitivities.calibrated(sensitivities.ruin(*BAD))
    sensitivities.tokenizer().save_pretrained("int8")
    model.save_pretrained("int8")
    result = invoke("sensitivity", "int8", "--data", "dev.tsv", "--json", "--batch-size", 5)
    assert (result.exit_code, result.stderr) == (0, "")
    expected = measure(model, sensitivities.task(), sensitivities.labelled(), batch_size=5)
    assert json.loads(result.stdout)["costs"] == json.loads(json.dumps(expected.to_dict()))


def test_samples_are_drawn_by_the_seed(run) -> None:
    model = sensitivities.calibrated()
    sensitivities.tokenizer().save_pretrained("int8")
    model.save_pretrained("int8")
    outputs = []
    for seed in (0, 0, 1):
        result = invoke("sensitivity", "int8", "--data", "dev.tsv", "--json", "--samples", 5, "--seed", seed)
        assert result.exit_code == 0, result.output
        outputs.append(json.loads(result.stdout)["costs"])
    assert outputs[0] == outputs[1] != outputs[2]
    assert outputs[0]["examples"] == 5


def test_quiet(run) -> None:
    result = run("--data", "dev.tsv", "--samples", 2, "--max-drop", 100, "--plot", "a.png", "-q")
    assert (result.exit_code, result.stderr) == (0, "")


def test_where_only_the_float_model_will_do(run) -> None:
    every = [unit.name for unit in find_units(sensitivities.calibrated())]
    config = sensitivities.ruin(*every)
    Path("worst.json").write_text(json.dumps(config.to_dict()))
    result = run("--data", "dev.tsv", "--config", "worst.json", "--max-drop", 0, "--out", "mixed.json")
    assert result.exit_code == 1
    table = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "8 of 8 100.00 0.00% nothing else is within the limit" in table
    assert result.stderr.splitlines()[-1].startswith(
        "Error: No unit can be quantized with a drop of at most 0%. Allow more"
    )
    assert not Path("mixed.json").exists()


def test_mistakes(run, monkeypatch: pytest.MonkeyPatch) -> None:
    models.uncalibrated(sensitivities.HEAD).save_pretrained("uncalibrated")
    sensitivities.tokenizer().save_pretrained("uncalibrated")
    sensitivities.calibrated().save_pretrained("int8")
    sensitivities.tokenizer().save_pretrained("int8")
    Path("folder").mkdir()
    for options, code, fragment in (
        (["--data", "dev.tsv", "--out", "a.json"], 2, "--out writes what --max-drop finds, and needs it."),
        (["--data", "dev.tsv", "--max-drop", "nan"], 2, "'--max-drop': 'nan' is not a finite number."),
        (["--data", "dev.tsv", "--max-drop", -1], 2, "-1.0 is not in the range x>=0"),
        (["--data", "dev.tsv", "--samples", 0], 2, "0 is not in the range x>=1"),
        ([], 2, "Missing option '--data'"),
        (["--data", "no.tsv"], 1, "There is no file no.tsv"),
        (["--data", "dev.tsv", "--plot", "a.gif"], 1, "Cannot plot to a.gif: the name must end in"),
        (["--data", "dev.tsv", "--max-drop", 1, "--out", "folder"], 1, "Cannot write folder: it is there"),
        (["--data", "dev.tsv", "--override", "*nothing*=off"], 1, "'*nothing*' matches no quantizer"),
        (["--data", "dev.tsv", "--label-column", "no", "--metric"], 1, "dev.tsv has no column 'no'"),
    ):
        assert_fails(run(*options), fragment, code=code)
    given = ("--data", "dev.tsv")
    assert_fails(invoke("sensitivity", "nowhere", *given), "There is no folder nowhere")
    assert_fails(invoke("sensitivity", "folder", *given), "folder has no config.json")
    assert_fails(
        invoke("sensitivity", "int8", *given, "--preset", "no-residual"), "int8 is quantized already, so"
    )
    assert_fails(
        invoke("sensitivity", "uncalibrated", *given),
        "uncalibrated is not calibrated: 40 quantizers have no range yet, the first one",
        "Convert it again with --calib, or name the float checkpoint",
    )


@pytest.mark.parametrize("command", ["sensitivity CKPT", "optimize CKPT out", "train CKPT out --distill"])
def test_a_checkpoint_without_the_head_is_refused_before_the_data_is_read(
    command: str, checkpoint: Path
) -> None:
    arguments = [str(checkpoint) if word == "CKPT" else word for word in command.split()]
    result = invoke(*arguments, "--task", "question-answering", "--data", "no.json")
    assert_fails(result, "is no model for question-answering: it lacks qa_outputs.bias")


def test_help_has_sections(run) -> None:
    found = run("--help").stdout
    assert re.findall(r"^([A-Z][a-z ]+):$", found, re.MULTILINE) == [
        "Data",
        "Quantization",
        "Mixed precision",
        "Running",
        "Output",
        "Options",
    ]
