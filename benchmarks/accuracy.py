"""What each calibration method costs on real tasks: float against int8, without labels.

    python benchmarks/accuracy.py [FOLDER] [--questions 1000] [--methods auto percentile-99.99 ...]

The models and data are those of `tasks.py`. Each model is calibrated on 256 training examples without their
labels; one collection pass serves all methods. `change` is relative to float.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

import torch
from common import Row, prepare, seconds, show, surroundings
from tasks import SHARED, TASKS, Task
from transformers import PreTrainedModel

import qdqpatch
from qdqpatch.calibration import Statistics, calibrate, collect

PLACEMENTS = {"full placement": "qdqbert", "residual adds float": "no-residual"}
METHODS = ("max", "percentile-99.9", "percentile-99.99", "percentile-99.999", "mse", "entropy", "auto")
EXAMPLES = 256


def main() -> None:
    """Print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=SHARED)
    parser.add_argument("--tasks", nargs="+", choices=[task.name for task in TASKS], default=None)
    parser.add_argument("--questions", type=int, default=1000, help="of SQuAD's dev set")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        print(f"Skipped: there is no {arguments.folder}. Name the folder that holds the models and the data.")
        return
    prepare()
    for kind in TASKS:
        if arguments.tasks is None or kind.name in arguments.tasks:
            task = kind(arguments.folder)
            limit = arguments.questions if task.name == "squad" else None
            rows = measure(task, arguments.methods, limit)
            show(f"{task.name}, {EXAMPLES} examples", ("", *rows.pop(0)), rows)
    print(surroundings())


def measure(task: Task, methods: tuple[str, ...], limit: int | None) -> list[Row]:
    """Return the names of the columns, then a row for the float model and for each method and placement."""
    batches = shuffled(task.calibration_batches(EXAMPLES, batch_size=16))
    floating = task.evaluate(task.load(), limit)
    rows: list[Row] = [(*floating, "change", "calibration")]
    rows.append(("float", *(f"{figure:.1f}" for figure in floating.values()), "", ""))
    for title, preset in PLACEMENTS.items():
        model = qdqpatch.quantize(task.load(), qdqpatch.QDQConfig.preset(preset))
        statistics = {}
        for method in methods:
            compare = method == "auto"
            if compare not in statistics:
                statistics[compare] = seconds(functools.partial(collect, model, batches, compare=compare))
            taken, found = statistics[compare]
            searching, _ = seconds(functools.partial(search, model, found, method))
            figures = task.evaluate(model, limit)
            main_metric = list(figures)[-1]
            change = 100 * (figures[main_metric] / floating[main_metric] - 1)
            texts = (f"{figure:.1f}" for figure in figures.values())
            rows.append((f"{title}, {method}", *texts, f"{change:+.1f}%", f"{taken + searching:.0f} s"))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def shuffled(batches: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """Return the batches, which come in order of length, in a fixed random order."""
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0))
    return [batches[place] for place in order]


def search(model: PreTrainedModel, found: Statistics, method: str) -> None:
    """Set the model's ranges by the method."""
    name, _, percentile = method.partition("-")
    calibrate(model, found, name, percentile=float(percentile or 99.99))  # type: ignore[arg-type]  # a literal


if __name__ == "__main__":
    main()
