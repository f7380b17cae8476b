"""What quantization costs on real tasks, and what training gets back: float, PTQ, QAT, distilled QAT.

    python benchmarks/training.py [FOLDER] [--tasks sst2 squad] [--modes QAT ...] [--seeds 0 1 2] [--work OUT]

The models and data are those of `tasks.py`. Each float model is calibrated on 256 training sequences by
several methods of `accuracy.py`; the last of them is then trained by the labels, and by the float model
without labels, once for each seed, with the defaults of `qdqpatch train`. All are evaluated in torch (on the
GPU if there is one) and, exported, in ONNX Runtime, on SST-2's dev set and the first 1,000 questions of
SQuAD's. What is done already is kept in OUT, so that an interrupted run goes on where it was, and so that
several can share the seeds and modes once the calibrated models are there (`--seeds` without a number).
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accuracy import options
from common import Row, prepare, quiet, show, surroundings
from tasks import SHARED

import qdqpatch
from qdqpatch.checkpoint.source import open_checkpoint
from qdqpatch.checkpoint.tokenizer import copy_tokenizer, load_tokenizer
from qdqpatch.engines.device import to_fastest_device
from qdqpatch.evaluation.evaluate import evaluate
from qdqpatch.evaluation.predicting import batches
from qdqpatch.output.folder import OutputFolder
from qdqpatch.tasks import TASKS
from qdqpatch.tasks.base import DataSource, draw
from qdqpatch.training.distillation import Distillation
from qdqpatch.training.job import Job
from qdqpatch.training.run import run_job
from qdqpatch.training.schedule import Schedule
from qdqpatch.training.stages import CALIBRATION

METHODS = ("max", "percentile-99.99", "auto", "auto-shift-refine")
"""As in `accuracy.py`; the last one's models are trained."""
MODES = {"QAT": None, "distilled QAT": Distillation()}
TORCH, ONNX = ENGINES = ("torch", "onnxruntime")

Figures = dict[str, dict[str, float]]
"""Of a model: by engine, by metric."""


@dataclass(frozen=True)
class Setting:
    """A task with the parts of its data that are used.

    Attributes:
        name: The last part of the names of its model and data.
        task: A key of `qdqpatch.tasks.TASKS`.
        max_length: Where sequences are cut.
        suffix: Of its files.
        questions: How many of the dev set are evaluated on; None for all.
        epochs: Passes over the training data.
    """

    name: str
    task: str
    max_length: int
    suffix: str
    questions: int | None = None
    epochs: float = Schedule.epochs


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("sst2", "text-classification", 128, "tsv.gz"),
        Setting("squad", "question-answering", 320, "json.gz", questions=1000),
    )
}


@dataclass(frozen=True)
class Bench:
    """A task's models and figures, made where they are not there yet.

    Attributes:
        setting: The task.
        folder: Holds the float models and the data.
        work: Where everything that is made is kept.
    """

    setting: Setting
    folder: Path
    work: Path

    def measure(self, modes: Sequence[str], seeds: Sequence[int]) -> dict[str, list[Figures]]:
        """Return the figures of each kind of model, one for each seed."""
        self.work.mkdir(parents=True, exist_ok=True)
        found = {"float": [self.figures(self.floating, [TORCH])]}
        for method in METHODS:
            found[f"PTQ, {method}"] = [self.figures(self.calibrated(method))]
        for mode in modes if seeds else ():
            found[mode] = [self.figures(self.trained(mode, seed)) for seed in seeds]
        return found

    @property
    def floating(self) -> Path:
        """The float model's folder."""
        return self.folder / "models" / f"minilm-{self.setting.name}"

    def calibrated(self, method: str) -> Path:
        """Return the folder of a model that was calibrated only."""
        out, ckpt = self.work / method, str(self.floating)
        if out.exists():
            return out
        opened = open_checkpoint(ckpt, self.setting.task)
        task = TASKS[self.setting.task](load_tokenizer(ckpt), opened.config, self.setting.max_length)
        examples = draw(task.read(self.source("train"), labelled=False), CALIBRATION)
        data = batches(task, task.features(examples)[:CALIBRATION], 16)
        model = to_fastest_device(opened.load()[0].eval())
        qdqpatch.ptq(model, data, **options(method))
        with OutputFolder.open(out, force=True).staged() as folder:
            model.save_pretrained(folder)
            copy_tokenizer(ckpt, folder)
        return out

    def trained(self, mode: str, seed: int) -> Path:
        """Return the folder of a model that was trained from the last method's ranges."""
        out = self.work / f"{mode.replace(' ', '-')}-{seed}"
        if out.exists():
            return out
        job = Job(
            ckpt=str(self.calibrated(METHODS[-1])),
            data=self.source("train"),
            eval_data=self.source("dev"),
            task=self.setting.task,
            max_length=self.setting.max_length,
            eval_samples=8,  # all are evaluated on afterwards
            teacher=str(self.floating),
            distillation=MODES[mode],
            schedule=Schedule(epochs=self.setting.epochs, seed=seed),
        )
        with quiet():
            run_job(job, out, resume=out.with_name(f"{out.name}.training").exists())
        return out

    def figures(self, ckpt: Path, engines: Sequence[str] = ENGINES) -> Figures:
        """Return a model's metrics in the engines; from a file if they are known."""
        known = self.work / f"{ckpt.name}.json"
        if known.exists():
            return dict(json.loads(known.read_text(encoding="utf-8")))
        paths = [ckpt, *([self.exported(ckpt)] if ONNX in engines else [])]
        rows = evaluate(
            [str(path) for path in paths],
            self.setting.task,
            self.source("dev"),
            max_length=self.setting.max_length,
            engines=engines,
        ).rows
        found = {row.engine: {name: metric.value for name, metric in row.metrics.items()} for row in rows}
        known.write_text(json.dumps(found), encoding="utf-8")
        return found

    def exported(self, ckpt: Path) -> Path:
        """Return the folder of a model's ONNX file."""
        out = ckpt.with_name(f"{ckpt.name}.{ONNX}")
        if not out.exists():
            with quiet():
                model = open_checkpoint(str(ckpt), self.setting.task).load()[0].eval()
                qdqpatch.export(model, out, ONNX, tokenizer=load_tokenizer(str(ckpt)), check=False)
        return out

    def source(self, part: str) -> DataSource:
        """Return the part `train` or `dev` of the data; of the latter the questions that are evaluated on."""
        path = self.folder / "data" / self.setting.name / f"{part}.{self.setting.suffix}"
        if part == "train" or self.setting.questions is None:
            return DataSource(str(path))
        out = self.work / "dev.json"
        if not out.exists():
            first_questions(path, self.setting.questions, out)
        return DataSource(str(out))


def main() -> None:
    """Print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=SHARED)
    parser.add_argument("--tasks", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--work", type=Path, help="where the models are kept; a temporary folder if not given"
    )
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        print(f"Skipped: there is no {arguments.folder}. Name the folder that holds the models and the data.")
        return
    prepare()
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.tasks:
            bench = Bench(SETTINGS[name], arguments.folder, (arguments.work or Path(temporary)) / name)
            found = bench.measure(arguments.modes, arguments.seeds)
            metrics = list(found["float"][0][TORCH])
            columns = [f"{metric}, {engine}" for engine in ENGINES for metric in metrics]
            changes = [f"change, {engine}" for engine in ENGINES]
            show(f"{name}, {bench.setting.epochs} epochs", ("", *columns, *changes), rows_of(found))
    print(surroundings())


def first_questions(path: Path, count: int, out: Path) -> None:
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


def rows_of(found: dict[str, list[Figures]]) -> list[Row]:
    """Return a row for each kind of model; for several seeds, means with their lowest and highest."""
    reference = found["float"][0][TORCH]
    main = list(reference)[-1]
    rows: list[Row] = []
    for kind, runs in found.items():
        cells, changes = [], []
        for engine in ENGINES:
            own = [run[engine] for run in runs if engine in run]
            cells += [spread([metrics[metric] for metrics in own]) for metric in reference]
            change = [100 * (metrics[main] / reference[main] - 1) for metrics in own]
            changes.append(f"{statistics.mean(change):+.1f}%" if change and kind != "float" else "")
        rows.append((kind, *cells, *changes))
    return rows


def spread(values: Sequence[float]) -> str:
    """Return a mean with the lowest and the highest value; empty if there is none."""
    if len(values) < 2:
        return "".join(f"{value:.1f}" for value in values)
    return f"{statistics.mean(values):.1f} ({min(values):.1f}-{max(values):.1f})"


if __name__ == "__main__":
    main()
