"""`qdqpatch train` on the command line."""

import json
from pathlib import Path

import models
import pytest
from checkpoints import write_tokenizer
from commands import invoke

from qdqpatch.errors import CheckpointError
from qdqpatch.output.folder import OutputFolder
from qdqpatch.training import run
from qdqpatch.training.distillation import Distillation
from qdqpatch.training.job import Job, Stage, TrainingReport

NAME = "BertForSequenceClassification"


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("float")
    models.build(NAME).save_pretrained(folder)
    return write_tokenizer(folder)


@pytest.fixture
def data(here: Path) -> Path:
    rows = ["sentence\tlabel", *(f"the cat sat {'on ' * number}\t{number % 3}" for number in range(12))]
    (here / "train.tsv").write_text("\n".join(rows) + "\n")
    return here / "train.tsv"


def test_training_prints_what_each_stage_gained(ckpt: Path, data: Path) -> None:
    result = invoke("train", ckpt, "out", "--data", data, "--distill", "--batch-size", 4, "--epochs", 1)
    assert result.exit_code == 0, result.output
    report = json.loads(Path("out/training.json").read_text())
    table = [line.split() for line in result.stdout.splitlines()]
    for stage in report["stages"]:
        assert [stage["name"], f"{stage['metrics']['accuracy']:.2f}"] in [row[:2] for row in table]
    assert [stage["name"] for stage in report["stages"]] == ["float", "calibrated", "distilled"]
    assert "On 1 example held out" in result.stdout
    assert result.stderr.splitlines()[-1] == "Wrote out."
    assert "loss" not in result.stdout  # of the Trainer's own lines
    assert report["job"]["schedule"] == {
        "epochs": 1.0, "lr": 2e-5, "batch_size": 4, "accumulate": 1, "warmup": 0.1, "weight_decay": 0.0,
        "seed": 0, "dropout": False, "bf16": False,
    }  # fmt: skip


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that the command would have run."""
    jobs: list[Job] = []

    def run_job(job: Job, *rest: object) -> TrainingReport:
        jobs.append(job)
        return TrainingReport(1, False, [Stage("float", {"F1": 90.0}), Stage("trained", {"F1": 89.5}, 90.0)])

    monkeypatch.setattr(run, "run_job", run_job)
    return jobs


def test_every_option_reaches_the_job(job: list[Job]) -> None:
    result = invoke(
        "train", "ckpt", "out", "--task", "question-answering", "--data", "train.json",
        "--eval-data", "dev.json", "--max-length", 320, "--doc-stride", 64,
        "--max-answer-length", 15, "--no-answer", "--null-threshold", 0.5, "--eval-samples", 9,
        "--epochs", 2, "--lr", 1e-4,
        "--batch-size", 3, "--accumulate", 2, "--warmup", 0, "--weight-decay", 0.1, "--seed", 5, "--dropout",
        "--bf16", "--distill", "--teacher", "big", "--temperature", 2, "--hidden-states", 3, "--attentions",
        4, "--labels", 5, "--activation-ranges", "clip", "--weight-ranges", "frozen", "--method", "max",
        "--no-shift", "--smooth-inputs", "--no-smooth-residuals", "--refine", 1,
        "--preset", "no-residual",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (found,) = (made.to_dict() for made in job)
    assert found.pop("config")["residual_adds"] is False
    columns = {"text": None, "text_pair": None, "label": None}
    assert found == {
        "ckpt": "ckpt", "task": "question-answering", "max_length": 320,
        "options": {"stride": 64, "longest_answer": 15, "no_answer": True, "null_threshold": 0.5},
        "eval_samples": 9, "teacher": "big",
        "data": {"name": "train.json", "columns": columns, "split": None, "subset": None},
        "eval_data": {"name": "dev.json", "columns": columns, "split": None, "subset": None},
        "distillation": {
            "logits": 1.0, "hidden_states": 3.0, "attentions": 4.0, "labels": 5.0, "temperature": 2.0,
        },
        "schedule": {
            "epochs": 2.0, "lr": 1e-4, "batch_size": 3, "accumulate": 2, "warmup": 0.0, "weight_decay": 0.1,
            "seed": 5, "dropout": True, "bf16": True,
        },
        "method": "max", "shift": False, "smooth_inputs": True, "smooth_residuals": False, "refine": 1,
        "activations": "clip", "weights": "frozen",
    }  # fmt: skip
    assert [line.split() for line in result.stdout.splitlines() if "trained" in line] == [
        ["trained", "89.50", "-0.50", "1.5", "min"]
    ]


@pytest.mark.parametrize(
    ("given", "found"),
    [("glue", ("glue", "validation", "sst2")), ("dev.tsv", ("dev.tsv", None, None))],
)
def test_evaluation_has_a_split_of_its_own(given: str, found: tuple, job: list[Job]) -> None:
    options = ("--data", "glue", "--split", "train[:9]", "--subset", "sst2", "--eval-data", given)
    assert invoke("train", "ckpt", "out", *options).exit_code == 0
    (source,) = (made.eval_data for made in job)
    assert (source.name, source.split, source.subset) == found
    assert job[0].data.split == "train[:9]"


def test_without_options_it_is_the_librarys_defaults(job: list[Job]) -> None:
    assert invoke("train", "ckpt", "out", "--data", "a.tsv").exit_code == 0
    assert invoke("train", "ckpt", "out", "--data", "a.tsv", "--distill").exit_code == 0
    plain, distilled = job
    assert plain == Job("ckpt", plain.data)
    assert distilled == Job("ckpt", plain.data, distillation=Distillation())


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--temperature", 2], "--temperature is for learning from the float model: add --distill.", 2),
        (["--teacher", "x"], "--teacher is for learning from the float model: add --distill.", 2),
        (["--resume"], "There is no interrupted run in out.training to go on with.", 1),
        (["--label-column", "stars"], "train.tsv has no column 'stars'; it has sentence, label.", 1),
        (["--doc-stride", 9], "stride is for question-answering, not for text-classification.", 1),
        (["--null-threshold", 1], "is for questions that may have no answer: add --no-answer.", 2),
        (["--no-answer"], "--no-answer is for question-answering, not for text-classification.", 1),
        (["--text-pair-column", "x"], "--text-pair-column needs --text-column", 2),
        (["--epochs", 0], "0.0 is not in the range x>0", 2),
    ],
    ids=str,
)
def test_mistakes(ckpt: Path, data: Path, arguments: list, message: str, code: int) -> None:
    result = invoke("train", ckpt, "out", "--data", data.name, *arguments)
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output
    assert [path.name for path in Path().iterdir()] == ["train.tsv"]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(143), CheckpointError("The disk is full.")]
)
@pytest.mark.parametrize("in_training", [True, False])
def test_an_interrupt_says_how_to_go_on(
    in_training: bool, error: BaseException, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> TrainingReport:
        if in_training:
            Path("out.training").mkdir()
            Path("out.training/job.json").write_text("{}")
        raise error

    monkeypatch.setattr(run, "run_job", interrupted)
    result = invoke("train", "ckpt", "out", "--data", "a.tsv")
    assert result.exit_code == getattr(error, "code", 1)
    message = "Interrupted. The same command with --resume goes on from the last checkpoint."
    assert (message in result.stderr) == in_training


def test_a_run_that_is_there_can_go_on_or_be_replaced(ckpt: Path, data: Path) -> None:
    with OutputFolder.open("out.training").staged() as folder:
        (folder / "job.json").write_text('{"job": {}, "stages": []}')
    result = invoke("train", ckpt, "out", "--data", data.name)
    message = (
        "out.training holds a run that was interrupted. To go on with it: --resume. To begin anew: --force."
    )
    assert result.exit_code == 1
    assert result.stderr == f"Error: {message}\n"


@pytest.mark.parametrize("command", ["convert", "train"])
@pytest.mark.parametrize("place", ["out", "out.training"])
def test_a_configuration_is_kept_that_lies_in_out(command: str, place: str, ckpt: Path, data: Path) -> None:
    with OutputFolder.open(place).staged() as folder:
        (folder / "mine.json").write_text("{}")
    options = ("--data", data.name) if command == "train" else ()
    result = invoke(command, ckpt, "out", "--force", "--config", f"{place}/mine.json", *options)
    if (command, place) != ("convert", "out.training"):  # which convert does not touch
        assert f"Error: {place} holds the configuration that is read" in result.stderr
        assert result.exit_code == 1
    assert Path(place, "mine.json").is_file()


def test_metrics_below_one_have_four_digits(
    ckpt: Path, data: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [Stage("float", {"cosine": 1.0}, digits={"cosine": 4}), Stage("distilled", {"cosine": 0.99871})]
    monkeypatch.setattr(run, "run_job", lambda *rest: TrainingReport(3, True, stages))
    result = invoke("train", ckpt, "out", "--data", data)
    assert "0.9987" in result.stdout
    assert "-0.0013" in result.stdout
