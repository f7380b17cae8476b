"""Training that was interrupted, killed or ran out of space goes on, and no file of a user is lost."""

import dataclasses
import errno
import os
from pathlib import Path

import models
import pytest
import torch
from training_jobs import SCHEDULE, Recording, job
from transformers import AutoModelForSequenceClassification, TrainerState

from qdqpatch.errors import CheckpointError, ConfigError
from qdqpatch.output.work import Work
from qdqpatch.tasks.base import DataSource
from qdqpatch.training.distillation import Distillation
from qdqpatch.training.fit import last_checkpoint
from qdqpatch.training.folder import RunFolder
from qdqpatch.training.run import run_job
from qdqpatch.training.schedule import Schedule


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
