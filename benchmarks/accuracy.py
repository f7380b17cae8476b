"""What each calibration method costs on real tasks: float against int8, without labels.

    python benchmarks/accuracy.py [FOLDER] [--questions 1000] [--methods auto percentile-99.99 ...]

The models and data are those of `tasks.py`. Each model is calibrated on 256 training examples without their
labels. `auto-fuse` gives the readers of one tensor one range; `auto-shift` shifts channels first;
`auto-shift-refine` lets the ranges learn afterwards; `smooth` is of what the Linears read, `residuals` of
what residual adds do, and `round` of weights. `--tasks`, `--configs` and `--methods` choose some of the rows.
With `--peers`, ONNX Runtime's dynamic int8 is among the rows, run by ONNX Runtime. `change` is relative to
float. Runs on a GPU where there is one.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peers
import torch
from common import Row, prepare, quiet, seconds, show, surroundings
from export_speed import float_file
from tasks import SHARED, TASKS, Task

import qdqpatch
from qdqpatch import QDQConfig

CONFIGS = {
    "full placement": QDQConfig(),
    "residual adds float": QDQConfig.preset("no-residual"),
    "residual adds float, asymmetric": QDQConfig.preset("no-residual", activation={"symmetric": False}),
    "full placement and outputs": QDQConfig.preset("outputs"),
    "FP8": QDQConfig.preset("fp8"),
    "FP8, residual adds float": QDQConfig.preset("fp8", residual_adds=False),
}
METHODS = (
    *("max", "percentile-99.9", "percentile-99.99", "percentile-99.999", "mse", "entropy", "auto"),
    *("auto-fuse", "auto-shift", "auto-shift-refine", "auto-shift-smooth", "auto-shift-smooth-round"),
    *("auto-shift-residuals", "auto-shift-smooth-residuals", "auto-shift-smooth-residuals-fuse"),
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
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=tuple(CONFIGS))
    parser.add_argument("--peers", action="store_true")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        print(f"Skipped: there is no {arguments.folder}. Name the folder that holds the models and the data.")
        return
    prepare()
    for kind in TASKS:
        if arguments.tasks is None or kind.name in arguments.tasks:
            task = kind(arguments.folder)
            limit = arguments.questions if task.name == "squad" else None
            rows = measure(task, arguments.methods, arguments.configs, limit, arguments.peers)
            show(f"{task.name}, {EXAMPLES} examples", ("", *rows.pop(0)), rows)
    print(surroundings())


def measure(
    task: Task, methods: Sequence[str], configs: Sequence[str], limit: int | None, with_peers: bool = False
) -> list[Row]:
    """Return the names of the columns, then a row for the float model and for each of the others."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batches = shuffled(task.calibration_batches(EXAMPLES, batch_size=16))
    floating = task.evaluate(task.load().to(device), limit)
    rows: list[Row] = [(*floating, "change", "calibration")]
    rows.append(("float", *(f"{figure:.1f}" for figure in floating.values()), "", ""))
    if with_peers:
        with tempfile.TemporaryDirectory() as folder:
            duration, model = seconds(lambda: InOnnxRuntime(task, batches[0], Path(folder)))
            rows.append(compared("ONNX Runtime, dynamic", task.evaluate(model, limit), floating, duration))
    for title in configs:
        for method in methods:
            model = task.load().to(device)
            quantize = functools.partial(qdqpatch.ptq, model, batches, CONFIGS[title], **options(method))
            duration, _ = seconds(quantize)
            rows.append(compared(f"{title}, {method}", task.evaluate(model, limit), floating, duration))
    return rows


def compared(name: str, figures: dict[str, float], floating: dict[str, float], duration: float) -> Row:
    """Return a contender's row, and print it as soon as it is known."""
    main_metric = list(figures)[-1]
    change = 100 * (figures[main_metric] / floating[main_metric] - 1)
    row = (name, *(f"{figure:.1f}" for figure in figures.values()), f"{change:+.1f}%", f"{duration:.0f} s")
    print(row, file=sys.stderr, flush=True)
    return row


class InOnnxRuntime:
    """A task's float model as ONNX Runtime quantizes it dynamically, called as a model is.

    Args:
        task: The task.
        batch: Inputs to trace with.
        folder: Where the files go.
    """

    device = torch.device("cpu")

    def __init__(self, task: Task, batch: dict[str, torch.Tensor], folder: Path) -> None:
        feed = {name: tensor.numpy() for name, tensor in batch.items()}
        onnxruntime = importlib.import_module("onnxruntime")
        with quiet():
            file = peers.dynamic(
                float_file(task.load(), folder / "float.onnx", feed), folder / "int8.onnx", feed
            )
        self._session = onnxruntime.InferenceSession(file)
        self._names = task.logits

    def __call__(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the outputs by the task's names for them."""
        found = self._session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return dict(zip(self._names, map(torch.from_numpy, found), strict=True))


def shuffled(batches: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """Return the batches, which come in order of length, in a fixed random order."""
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0))
    return [batches[place] for place in order]


def options(method: str) -> dict[str, Any]:
    """Return what `qdqpatch.ptq` takes for the name of a method, such as `auto-shift-refine`."""
    name, *details = method.split("-")
    found: dict[str, Any] = {"method": name, "shift": "shift" in details}
    found |= {"smooth_inputs": "smooth" in details, "smooth_residuals": "residuals" in details}
    found |= {"round_weights": "round" in details, "fuse_inputs": "fuse" in details}
    if name == "percentile":
        found["percentile"] = float(details[0])
    if "refine" in details:
        found["refine"] = EPOCHS
    return found


if __name__ == "__main__":
    main()
