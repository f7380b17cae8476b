"""The whole way of `qdqpatch train`: what it reports, what it saves, and going on after an interruption."""

import dataclasses
import json
import shutil
from pathlib import Path

import models
import pytest
import torch
from checkpoints import write_tokenizer
from training_jobs import NAME, SCHEDULE, TEXTS, Recording, job
from transformers import AutoModelForSequenceClassification

import qdqpatch
from qdqpatch.errors import CheckpointError, ConfigError, TrainingError
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.output.folder import OutputFolder
from qdqpatch.patching.apply import named_quantizers
from qdqpatch.tasks.base import Columns, DataSource
from qdqpatch.training.distillation import Distillation
from qdqpatch.training.run import run_job

UNCALIBRATED = {"method": "auto", "refine": 4}
"""What a job says of calibration that was told nothing of it."""


def test_the_way_from_a_float_checkpoint_to_a_trained_one(
    ckpt: str, data: DataSource, tmp_path: Path
) -> None:
    out, listener = tmp_path / "out", Recording()
    wanted = job(ckpt, data, distillation=Distillation(), method="auto", refine=4)
    report = run_job(wanted, out, listener=listener)
    assert [stage.name for stage in report.stages] == ["float", "calibrated", "distilled"]
    assert [list(stage.metrics) for stage in report.stages] == [["accuracy"]] * 3
    assert (report.examples, report.held_out, report.features) == (32, False, 32)
    assert listener.said == [
        "Reading the data",
        f"Loading {ckpt}",
        "Evaluating the float model",
        "Shifting",
        "Calibrating",
        "Refining the ranges",
        "Evaluating the calibrated model",
        "Training on 32 sequences",
        "Evaluating the distilled model",
    ]
    assert listener.steps == [(step, 24) for step in range(1, 25)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "train.tsv"]
    names = {"README.md", "config.json", "model.safetensors", "qdqpatch.json", "training.json"}
    assert {path.name for path in out.iterdir()} == names | {"tokenizer_config.json", "vocab.txt"}
    saved = json.loads((out / "training.json").read_text())
    assert saved["stages"] == [dataclasses.asdict(stage) for stage in report.stages]
    assert saved["job"]["schedule"]["epochs"] == 3
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert {type(quantizer) for _, quantizer in named_quantizers(model)} == {TensorQuantizer}
    assert all(quantizer.amax is not None for _, quantizer in named_quantizers(model))
    right = 0
    tokenizer = qdqpatch.checkpoint.tokenizer.load_tokenizer(str(out))
    for place, text in enumerate(TEXTS * 4):
        with torch.no_grad():
            right += int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) == place % 3
    assert report.stages[-1].metrics["accuracy"] == pytest.approx(100 * right / 32)


def test_training_learns_the_labels(ckpt: str, data: DataSource, tmp_path: Path) -> None:
    schedule = dataclasses.replace(SCHEDULE, epochs=100, lr=5e-3, dropout=False)
    by_text = [f"{text}\t{place % 3}" for place, text in enumerate(TEXTS)]
    Path(data.name).write_text("\n".join(["sentence\tlabel", *by_text]) + "\n")
    report = run_job(job(ckpt, data, schedule=schedule), tmp_path / "out")
    assert report.stages[-1].name == "trained"
    assert report.stages[-1].metrics["accuracy"] == 100
    assert report.stages[0].metrics["accuracy"] < 80
    assert report.loss < 1.2


def test_without_data_to_evaluate_on_some_is_held_out(ckpt: str, data: DataSource, tmp_path: Path) -> None:
    schedule = dataclasses.replace(SCHEDULE, epochs=0.1)
    report = run_job(job(ckpt, data, eval_data=None, schedule=schedule), tmp_path / "out")
    assert (report.examples, report.held_out, report.features) == (3, True, 29)


def test_fewer_examples_to_evaluate_on(ckpt: str, data: DataSource, tmp_path: Path) -> None:
    report = run_job(job(ckpt, data, eval_samples=5), tmp_path / "out")
    assert report.examples == 5
    assert all(stage.metrics["accuracy"] % 20 == 0 for stage in report.stages)


def test_a_calibrated_checkpoint_keeps_its_ranges_when_they_are_frozen(
    ckpt: str, data: DataSource, tmp_path: Path
) -> None:
    model = qdqpatch.quantize(AutoModelForSequenceClassification.from_pretrained(ckpt))
    qdqpatch.calibrate(model, [models.inputs(NAME)])
    ranges = models.ranges(model)
    model.save_pretrained(tmp_path / "calibrated")
    write_tokenizer(tmp_path / "calibrated")
    wanted = job(str(tmp_path / "calibrated"), data, activations="frozen", weights="frozen", **UNCALIBRATED)
    run_job(wanted, tmp_path / "out")
    trained = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    models.assert_equal(models.ranges(trained), ranges)
    assert not torch.equal(trained.classifier.weight, model.classifier.weight)


def test_what_does_not_fit_is_refused_before_the_work(ckpt: str, data: DataSource, tmp_path: Path) -> None:
    quantized = tmp_path / "uncalibrated"
    models.uncalibrated(NAME).save_pretrained(quantized)
    write_tokenizer(quantized)
    headless = tmp_path / "headless"
    models.build().save_pretrained(headless)
    write_tokenizer(headless)
    other_head, other_labels, other_words = (tmp_path / name for name in ("qa", "labels", "words"))
    models.build("BertForQuestionAnswering").save_pretrained(other_head)
    models.build(NAME, num_labels=7).save_pretrained(other_labels)
    shutil.copytree(ckpt, other_words)
    (other_words / "vocab.txt").write_text((other_words / "vocab.txt").read_text() + "more\n")
    out = tmp_path / "out"
    for wanted, resume, message in (
        (job(ckpt, data), True, f"There is no interrupted run in {out}.training to go on with."),
        (
            job(str(quantized), data, shift=False),
            False,
            f"{quantized} is quantized already, and is trained with the ranges that it has: leave out "
            "method='max', shift=False, refine=1, or train the float one.",
        ),
        (
            job(str(quantized), data, **UNCALIBRATED),
            False,
            f"{quantized} is not calibrated: 40 quantizers have no range yet, the first one "
            "bert.encoder.layer.0.attention.self.query._input_quantizer. Convert it again with texts, "
            "qdqpatch convert --calib, or train the float checkpoint.",
        ),
        (
            job(str(quantized), data, config=qdqpatch.QDQConfig()),
            False,
            f"{quantized} is quantized already: leave out what is to be quantized, or train the float one.",
        ),
        (
            job(str(headless), data),
            False,
            "A model for feature-extraction has no loss: train it with distillation.",
        ),
        (
            job(ckpt, data, teacher=str(quantized), distillation=Distillation()),
            False,
            f"The teacher {quantized} is quantized: name the float checkpoint.",
        ),
        (
            job(ckpt, data, teacher=str(other_head), distillation=Distillation()),
            False,
            f"The teacher {other_head} is a BertForQuestionAnswering and {ckpt} a {NAME}: both need the same "
            "head.",
        ),
        (
            job(ckpt, data, teacher=str(other_labels), distillation=Distillation()),
            False,
            f"{ckpt} has 3 labels and {other_labels} has 7: they cannot be compared.",
        ),
        (
            job(ckpt, data, teacher=str(other_words), distillation=Distillation()),
            False,
            f"{other_words} has another vocabulary than {ckpt}, and all models get the same tokens. Name "
            "models of one vocabulary.",
        ),
        (
            job(ckpt, DataSource(data.name, Columns(label="stars"))),
            False,
            f"{data.name} has no column 'stars'; it has sentence, label.",
        ),
    ):
        with pytest.raises((ConfigError, CheckpointError, qdqpatch.QdqError)) as raised:
            run_job(wanted, out, resume)
        assert str(raised.value) == message
        assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("distillation", [None, Distillation()])
@pytest.mark.parametrize(
    ("epochs", "lr", "how"),
    [
        (3, 1e30, "the loss is nan at step 3 of 24"),
        (0.25, 1e39, r"bert\.[\w.]+ holds NaN or infinity after step 2 of 2"),
    ],
)
def test_training_that_diverges_is_stopped(
    epochs: float,
    lr: float,
    how: str,
    distillation: Distillation | None,
    ckpt: str,
    data: DataSource,
    tmp_path: Path,
) -> None:
    schedule = dataclasses.replace(SCHEDULE, epochs=epochs, lr=lr)
    wanted = job(ckpt, data, schedule=schedule, distillation=distillation)
    message = rf"^Training diverged: {how}\. Lower the learning rate, which is .*\. Nothing was"
    with pytest.raises(TrainingError, match=message):
        run_job(wanted, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["train.tsv"]  # and so a lower rate can be tried


def test_labels_that_no_rate_could_learn(ckpt: str, data: DataSource, tmp_path: Path) -> None:
    scores = tmp_path / "scores"
    models.build(NAME, num_labels=1).save_pretrained(scores)
    write_tokenizer(scores)
    rows = [f"{text}\t{place}e30" for place, text in enumerate(TEXTS)]
    Path(data.name).write_text("\n".join(["text\tlabel", *rows]) + "\n")
    with pytest.raises(
        TrainingError, match=r"^The loss is inf before anything was learned: check the labels"
    ):
        run_job(job(str(scores), data), tmp_path / "out")


def test_what_else_is_read_is_kept(ckpt: str, data: DataSource, tmp_path: Path) -> None:
    with OutputFolder.open(tmp_path / "out").staged() as folder:
        (folder / "config.json").write_text("{}")
    inputs = {"the configuration": tmp_path / "out" / "config.json"}
    with pytest.raises(CheckpointError, match="out holds the configuration that is read"):
        run_job(job(ckpt, data), tmp_path / "out", force=True, inputs=inputs)


def test_an_embedding_model_is_distilled_without_labels(ckpt: str, tmp_path: Path) -> None:
    headless = tmp_path / "headless"
    models.build().save_pretrained(headless)
    write_tokenizer(headless)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS * 2) + "\n")
    source = DataSource(str(tmp_path / "texts.txt"))
    wanted = job(str(headless), source, eval_data=source, distillation=Distillation())
    report = run_job(wanted, tmp_path / "out")
    before, after = report.stages[1].metrics["cosine"], report.stages[2].metrics["cosine"]
    assert report.stages[0].metrics["cosine"] == pytest.approx(1)
    assert 0 < before < 1
    assert after != before
