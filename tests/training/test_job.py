"""The whole way of `qdqpatch train`: what it reports, what it saves, and going on after an interruption."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import models
import pytest
import torch
from checkpoints import write_tokenizer
from training_jobs import NAME, SCHEDULE, TEXTS, Recording, job
from transformers import AutoModelForSequenceClassification, TrainerState

import qdqpatch
from qdqpatch.errors import CheckpointError, ConfigError, TrainingError
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.output.folder import OutputFolder
from qdqpatch.output.work import Work
from qdqpatch.patching.apply import named_quantizers
from qdqpatch.tasks.base import Columns, DataSource
from qdqpatch.training.distillation import Distillation
from qdqpatch.training.fit import last_checkpoint
from qdqpatch.training.folder import RunFolder
from qdqpatch.training.run import run_job
from qdqpatch.training.schedule import Schedule

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


def test_a_run_goes_on_that_was_interrupted_before_its_first_checkpoint(
    ckpt: str, data: DataSource, tmp_path: Path
) -> None:
    wanted = job(ckpt, data, distillation=Distillation())
    run_job(wanted, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_job(wanted, tmp_path / "out", listener=Recording(stop_at=1))
    assert last_checkpoint(tmp_path / "out.training") is None
    listener = Recording()
    run_job(wanted, tmp_path / "out", resume=True, listener=listener)
    assert listener.steps[0] == (1, 24)
    assert "Calibrating" not in listener.said
    one, other = (
        dict(AutoModelForSequenceClassification.from_pretrained(tmp_path / name).state_dict())
        for name in ("whole", "out")
    )
    models.assert_equal(one, other)


@pytest.mark.parametrize("full_at", ["optimizer.pt", "trainer_state.json"])
def test_a_run_goes_on_after_the_disk_was_full(
    full_at: str, ckpt: str, data: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file of the second checkpoint is cut off, the run goes on from the first one."""
    whole = {"save": torch.save, "save_to_json": TrainerState.save_to_json}
    place = tmp_path / "out.training" / "checkpoint-2" / full_at

    def cut_off(file: str, error: Exception) -> None:
        content = Path(file).read_bytes()
        if Path(file) == place:
            Path(file).write_bytes(content[: len(content) // 2])
            raise error

    def save(value: object, file: str) -> None:
        whole["save"](value, file)
        cut_off(file, RuntimeError("basic_ios::clear: iostream error"))  # torch's word for a full disk

    def save_to_json(state: TrainerState, file: str) -> None:
        whole["save_to_json"](state, file)
        cut_off(file, OSError(errno.ENOSPC, "No space left on device"))

    short = dataclasses.replace(SCHEDULE, epochs=0.5)
    wanted = job(ckpt, data, schedule=short)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        patch.setattr(TrainerState, "save_to_json", save_to_json)
        with pytest.raises(
            CheckpointError, match=r"Cannot write .*out\.training: (the disk may be|No space)"
        ):
            run_job(wanted, tmp_path / "out")
    assert last_checkpoint(tmp_path / "out.training").name == "checkpoint-1"
    listener = Recording()
    run_job(wanted, tmp_path / "out", resume=True, listener=listener)
    assert listener.steps == [(2, 4), (3, 4), (4, 4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "train.tsv"]


@pytest.mark.slow
def test_an_interrupted_run_ends_as_one_that_was_not(ckpt: str, data: DataSource, tmp_path: Path) -> None:
    wanted = job(ckpt, data, distillation=Distillation(hidden_states=0.1))
    whole = run_job(wanted, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_job(wanted, tmp_path / "out", listener=Recording(stop_at=13))
    assert not (tmp_path / "out").exists()
    folder = tmp_path / "out.training"
    assert last_checkpoint(folder).name == "checkpoint-12"
    (folder / "checkpoint-14").mkdir()  # one that was being written
    with pytest.raises(CheckpointError, match=r"out.training holds a run that was interrupted\.$"):
        run_job(wanted, tmp_path / "out")
    with pytest.raises(
        ConfigError, match=r"was another one: it differs in schedule\.epochs, schedule\.lr, .*, method"
    ):
        run_job(dataclasses.replace(wanted, schedule=Schedule(), method="mse"), tmp_path / "out", resume=True)
    listener = Recording()
    resumed = run_job(wanted, tmp_path / "out", resume=True, listener=listener)
    assert listener.steps[0] == (13, 24)
    assert "Calibrating" not in listener.said
    assert [stage.metrics for stage in resumed.stages] == [stage.metrics for stage in whole.stages]
    one, other = (
        dict(AutoModelForSequenceClassification.from_pretrained(tmp_path / name).state_dict())
        for name in ("whole", "out")
    )
    models.assert_equal(one, other)
    assert not folder.exists()


def test_a_run_that_was_interrupted_can_be_replaced(ckpt: str, data: DataSource, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_job(job(ckpt, data), tmp_path / "out", listener=Recording(stop_at=1))
    (tmp_path / "out.training" / "job.json").write_text("{")
    with pytest.raises(
        CheckpointError, match=r"job\.json is damaged \(.*\), so that the run cannot go on: begin"
    ):
        run_job(job(ckpt, data), tmp_path / "out", resume=True)
    listener = Recording()
    run_job(job(ckpt, data), tmp_path / "out", force=True, listener=listener)
    assert listener.steps[0] == (1, 24)
    assert (tmp_path / "out" / "training.json").is_file()


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


def test_a_users_folder_beside_out_is_kept(ckpt: str, data: DataSource, tmp_path: Path) -> None:
    folder = tmp_path / "out.training"
    (folder / "checkpoint-6").mkdir(parents=True)
    (folder / "checkpoint-6" / "config.json").write_text("mine")
    for force in (False, True):
        with pytest.raises(CheckpointError, match=r"out\.training is not empty, and qdqpatch did not"):
            run_job(job(ckpt, data), tmp_path / "out", force=force)
    (folder / "job.json").write_text('{"company": "mine"}')
    with pytest.raises(CheckpointError, match=r"did not write all that is in it: checkpoint-6, job\.json"):
        run_job(job(ckpt, data), tmp_path / "out", force=True)
    assert (folder / "checkpoint-6" / "config.json").read_text() == "mine"


def test_a_users_file_in_the_folder_of_a_run_is_kept(ckpt: str, data: DataSource, tmp_path: Path) -> None:
    schedule = dataclasses.replace(SCHEDULE, epochs=0.1)
    wanted, folder = job(ckpt, data, schedule=schedule), tmp_path / "out.training"

    class Writing(Recording):
        def say(self, text: str) -> None:
            super().say(text)
            if text == "Evaluating the trained model":
                (folder / "notes.txt").write_text("mine")

    run_job(wanted, tmp_path / "out", listener=Writing())
    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder / "job.json").exists()
    assert (tmp_path / "out" / "training.json").is_file()
    with pytest.raises(CheckpointError, match=r"did not write all that is in it: .*notes\.txt"):
        run_job(wanted, tmp_path / "out", force=True)


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_that_was_killed_while_its_folder_was_removed_can_go_on_or_be_replaced(
    resume: bool, ckpt: str, data: DataSource, tmp_path: Path
) -> None:
    wanted, folder = job(ckpt, data), tmp_path / "out.training"
    with pytest.raises(KeyboardInterrupt):
        run_job(wanted, tmp_path / "out", listener=Recording(stop_at=3))
    assert (folder / "checkpoint-2").is_dir()  # which the manifest does not list

    def killed() -> None:
        raise KeyboardInterrupt

    work = Work(tmp_path, folder.name)
    with pytest.raises(KeyboardInterrupt):
        work.move(lambda: ([(folder, work.old / folder.name)], ()), killed)
    os.close(work._lock)
    assert not folder.exists()
    run = RunFolder.open(wanted, tmp_path / "out", {}, resume, force=not resume)
    assert (run.stages is not None) == resume
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.training", "train.tsv"]


def test_a_run_that_was_killed_when_all_was_written_is_done(
    ckpt: str, data: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = dataclasses.replace(SCHEDULE, epochs=0.1)
    wanted = job(ckpt, data, schedule=schedule)

    def killed(self: RunFolder) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            run_job(wanted, tmp_path / "out")
    before = (tmp_path / "out" / "training.json").read_text()
    report = run_job(wanted, tmp_path / "out", resume=True)
    assert [stage.name for stage in report.stages] == ["float", "calibrated", "trained"]
    assert (tmp_path / "out" / "training.json").read_text() == before
    assert not (tmp_path / "out.training").exists()
