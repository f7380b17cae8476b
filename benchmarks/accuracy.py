"""What each calibration method costs on real tasks: float against int8, without labels.

    python benchmarks/accuracy.py [FOLDER] [--questions 1000] [--methods auto percentile-99.99 ...]

The models and data are those of `tasks.py`. Each model is calibrated on 256 training examples without their
labels; one collection pass serves all methods. `auto-shift` shifts channels first; `auto-shift-refine` lets
the ranges learn afterwards. `change` is relative to float. Runs on a GPU where there is one.
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
from qdqpatch.calibration import Statistics, calibrate, collect, refine_ranges, shift

PLACEMENTS = {"full placement": "qdqbert", "residual adds float": "no-residual"}
METHODS = (
    *("max", "percentile-99.9", "percentile-99.99", "percentile-99.999", "mse", "entropy", "auto"),
    *("auto-shift", "auto-shift-refine"),
)
EXAMPLES = 256
EPOCHS = 4
"""Of refining."""


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
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batches = shuffled(task.calibration_batches(EXAMPLES, batch_size=16))
    floating = task.evaluate(task.load().to(device), limit)
    rows: list[Row] = [(*floating, "change", "calibration")]
    rows.append(("float", *(f"{figure:.1f}" for figure in floating.values()), "", ""))
    for title, preset in PLACEMENTS.items():
        collected: dict[tuple[bool, bool], tuple[float, PreTrainedModel, Statistics]] = {}
        for method in methods:
            name, *steps = method.split("-")
            key = "shift" in steps, name == "auto"
            if key not in collected:
                model = qdqpatch.quantize(task.load().to(device), qdqpatch.QDQConfig.preset(preset))
                collecting, found = seconds(functools.partial(gather, model, batches, *key))
                collected[key] = collecting, model, found
            collecting, model, found = collected[key]
            searching, _ = seconds(functools.partial(search, model, found, method, batches))
            figures = task.evaluate(model, limit)
            main_metric = list(figures)[-1]
            change = 100 * (figures[main_metric] / floating[main_metric] - 1)
            texts = (f"{figure:.1f}" for figure in figures.values())
            rows.append((f"{title}, {method}", *texts, f"{change:+.1f}%", f"{collecting + searching:.0f} s"))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def shuffled(batches: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """Return the batches, which come in order of length, in a fixed random order."""
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0))
    return [batches[place] for place in order]


def gather(
    model: PreTrainedModel, batches: list[dict[str, torch.Tensor]], shifted: bool, compare: bool
) -> Statistics:
    """Return what the model's quantizers see, after shifting its channels if asked for."""
    if shifted:
        shift(model, batches)
    return collect(model, batches, compare=compare)


def search(
    model: PreTrainedModel, found: Statistics, method: str, batches: list[dict[str, torch.Tensor]]
) -> None:
    """Set the model's ranges by the method."""
    name, *details = method.split("-")
    percentile = float(details[0]) if name == "percentile" else 99.99
    calibrate(model, found, name, percentile=percentile)  # type: ignore[arg-type]  # a literal
    if "refine" in details:
        refine_ranges(model, batches, epochs=EPOCHS)


if __name__ == "__main__":
    main()
