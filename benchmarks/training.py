"""What quantization costs on real tasks, and what training gets back: float, PTQ, QAT, distilled QAT.

    python benchmarks/training.py [FOLDER] [--tasks sst2 squad] [--seeds 0 1 2] [--work OUT]

The models and data are those of `tasks.py`. Each float model is calibrated on 256 training sequences by
several methods; the one that `auto` calibrated is then trained by the labels, and by the float model without
labels, once for each seed, with the defaults of `qdqpatch train` but for the length of the schedule, which is
printed. All are evaluated in torch and, exported, in ONNX Runtime, on SST-2's dev set and the first questions
of SQuAD's. What is done already is kept in OUT, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common import Row, prepare, quiet, show, surroundings
from tasks import SHARED

import qdqpatch
from qdqpatch.checkpoint.source import open_checkpoint
from qdqpatch.checkpoint.tokenizer import copy_tokenizer, load_tokenizer
from qdqpatch.evaluation.evaluate import evaluate
from qdqpatch.evaluation.predicting import batches
from qdqpatch.evaluation.result import Evaluation
from qdqpatch.tasks import TASKS
from qdqpatch.tasks.base import Source, draw
from qdqpatch.training.distillation import Distillation
from qdqpatch.training.fit import Schedule
from qdqpatch.training.job import Job
from qdqpatch.training.run import CALIBRATION, run_job

METHODS = ("max", "percentile", "auto")
MODES = {"QAT": None, "distilled QAT": Distillation()}
ONNX = "onnxruntime"


@dataclass(frozen=True)
class Setting:
    """A task with the parts of its data that are used.

    Attributes:
        name: The last part of the names of its model and data.
        task: A key of `qdqpatch.tasks.TASKS`.
        max_length: Where sequences are cut.
        suffix: Of its files.
        epochs: Passes over the training data.
        questions: How many of the dev set are evaluated on; None for all.
    """

    name: str
    task: str
    max_length: int
    suffix: str
    epochs: float
    questions: int | None = None


SETTINGS = {
    each.name: each
    for each in (
        Setting("sst2", "text-classification", 128, "tsv.gz", epochs=0.1),
        Setting("squad", "question-answering", 320, "json.gz", epochs=0.1, questions=400),
    )
}


@dataclass
class Models:
    """The folders of one task's models.

    Attributes:
        float_model: The float model's.
        ptq: Those that were calibrated only, by method.
        trained: Those that were trained, by mode, one for each seed.
    """

    float_model: Path
    ptq: dict[str, Path] = field(default_factory=dict)
    trained: dict[str, list[Path]] = field(default_factory=dict)

    def folders(self) -> list[Path]:
        """Return all of them, the float model's first."""
        return [
            self.float_model,
            *self.ptq.values(),
            *(each for mode in self.trained.values() for each in mode),
        ]


def main() -> None:
    """Print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=SHARED)
    parser.add_argument("--tasks", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--work", type=Path, help="where the models are kept; a temporary folder if not given"
    )
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        print(f"Skipped: there is no {arguments.folder}. Name the folder that holds the models and the data.")
        return
    prepare()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        for name in arguments.tasks:
            setting = SETTINGS[name]
            (work / name).mkdir(parents=True, exist_ok=True)
            models = make(setting, arguments.folder, work / name, arguments.seeds)
            found = measure(setting, arguments.folder, work / name, models)
            columns = (
                "",
                *(f"{metric}, {engine}" for engine in ("torch", ONNX) for metric in found.rows[0].metrics),
            )
            title = f"{name}, {found.examples} examples; trained for {setting.epochs} epochs"
            show(title, (*columns, "change", f"change, {ONNX}"), rows_of(models, found))
    print(surroundings())


def make(setting: Setting, folder: Path, work: Path, seeds: Sequence[int]) -> Models:
    """Calibrate, train and export what is not there yet."""
    models = Models(folder / "models" / f"minilm-{setting.name}")
    for method in METHODS:
        models.ptq[method] = work / method
        if not models.ptq[method].exists():
            calibrate(setting, folder, models.float_model, method, models.ptq[method])
    for mode, distillation in MODES.items():
        models.trained[mode] = [work / f"{mode.replace(' ', '-')}-{seed}" for seed in seeds]
        for seed, out in zip(seeds, models.trained[mode], strict=True):
            if not out.exists():
                job = Job(
                    ckpt=str(models.ptq["auto"]),
                    data=source(setting, folder, "train"),
                    eval_data=source(setting, folder, "dev"),
                    task=setting.task,
                    max_length=setting.max_length,
                    eval_samples=8,  # they are all evaluated at the end
                    teacher=str(models.float_model),
                    distillation=distillation,
                    schedule=Schedule(epochs=setting.epochs, seed=seed),
                )
                resume = out.with_name(f"{out.name}.training").exists()
                with quiet():
                    run_job(job, out, resume=resume)
    for each in models.folders()[1:]:
        out = exported(each)
        if not out.exists():
            with quiet():
                model = open_checkpoint(str(each), setting.task).load()[0]
                qdqpatch.export(model.eval(), out, ONNX, tokenizer=load_tokenizer(str(each)), check=False)
    return models


def calibrate(setting: Setting, folder: Path, ckpt: Path, method: str, out: Path) -> None:
    """Calibrate the float model and save it."""
    opened = open_checkpoint(str(ckpt), setting.task)
    task = TASKS[setting.task](load_tokenizer(str(ckpt)), opened.config, setting.max_length)
    examples = draw(task.read(source(setting, folder, "train"), labelled=False), CALIBRATION)
    model = qdqpatch.quantize(opened.load()[0].eval())
    chosen = task.features(examples)[:CALIBRATION]
    qdqpatch.calibrate(model, batches(task, chosen, 16), method)  # type: ignore[arg-type]  # a literal
    model.save_pretrained(out)
    copy_tokenizer(str(ckpt), out)


def source(setting: Setting, folder: Path, part: str) -> Source:
    """Return a part of a task's data."""
    return Source(str(folder / "data" / setting.name / f"{part}.{setting.suffix}"))


def exported(folder: Path) -> Path:
    """Return the folder of a model's ONNX file."""
    return folder.with_name(f"{folder.name}.{ONNX}")


def measure(setting: Setting, folder: Path, work: Path, models: Models) -> Evaluation:
    """Evaluate all models, the float one in torch alone."""
    data = source(setting, folder, "dev")
    if setting.questions is not None:
        data = Source(str(first_questions(Path(data.name), setting.questions, work / "dev.json")))
    folders = models.folders()
    paths = [str(folders[0]), *(str(path) for each in folders[1:] for path in (each, exported(each)))]
    return evaluate(paths, setting.task, data, max_length=setting.max_length)


def first_questions(path: Path, count: int, out: Path) -> Path:
    """Write the first questions of a file in SQuAD's layout as another."""
    kept = []
    for article in json.loads(gzip.decompress(path.read_bytes()))["data"]:
        paragraphs = []
        for paragraph in article["paragraphs"]:
            questions = paragraph["qas"][:count]
            count -= len(questions)
            if questions:
                paragraphs.append({**paragraph, "qas": questions})
        if paragraphs:
            kept.append({**article, "paragraphs": paragraphs})
    out.write_text(json.dumps({"data": kept}), encoding="utf-8")
    return out


def rows_of(models: Models, found: Evaluation) -> list[Row]:
    """Return a row for each kind of model; for several seeds, means with their lowest and highest."""
    by_path = {str(Path(row.path).parent if row.engine == ONNX else row.path): row for row in found.rows}
    floating = by_path[str(models.float_model)]
    main = list(floating.metrics)[-1]
    kinds = {"float": [models.float_model]}
    kinds |= {f"PTQ, {method}": [path] for method, path in models.ptq.items()}
    kinds |= models.trained
    rows: list[Row] = []
    for name, paths in kinds.items():
        cells, changes = [], []
        for place in (lambda path: path, exported):
            runs = [by_path[str(place(path))] for path in paths if str(place(path)) in by_path]
            for metric in floating.metrics:
                cells.append(spread([run.metrics[metric].value for run in runs]))
            values = [run.metrics[main].value for run in runs]
            reference = floating.metrics[main].value
            is_float = paths == [models.float_model]
            changes.append("" if is_float else f"{100 * (statistics.mean(values) / reference - 1):+.1f}%")
        rows.append((name, *cells, *changes))
    return rows


def spread(values: Sequence[float]) -> str:
    """Return a mean with the lowest and the highest value; empty if there is none."""
    if len(values) < 2:
        return "".join(f"{value:.1f}" for value in values)
    return f"{statistics.mean(values):.1f} ({min(values):.1f}-{max(values):.1f})"


if __name__ == "__main__":
    main()
