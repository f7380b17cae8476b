"""What the benchmarks share: the model, the clock and the table."""

from __future__ import annotations

import io
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import absl.logging
import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import BertConfig

import qdqpatch

Row = tuple[str, ...]

BERT_BASE = BertConfig()
"""12 layers, hidden size 768: the sizes of bert-base-uncased."""


def prepare() -> None:
    """Keep the libraries' bars and notices off the table, and do without a network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers.logging.disable_progress_bar()
    # The toolkit says at each turn that native fake quantization is experimental.
    absl.logging.set_verbosity(absl.logging.ERROR)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what other tools print, log and warn of while they make their files off the table."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long a call took, and what it returned."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def in_turn(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of a run of each contender: in turn, one run to warm up and three timed."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            for _ in range(3):
                started = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}


def run_alone(script: str, name: str) -> float:
    """Return what a script prints when it is called with the name of a contender, in a process of its own."""
    command = [sys.executable, script, name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def largest_resident_set() -> float:
    """Return this process's largest resident set, in MB (Linux)."""
    # Not getrusage: what that says is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def spread(times: list[float]) -> tuple[str, str, str]:
    """Return median, fastest and slowest in milliseconds."""
    figures = (statistics.median(times), min(times), max(times))
    return tuple(f"{1000 * figure:.1f} ms" for figure in figures)  # type: ignore[return-value]  # of three


def show(title: str, columns: tuple[str, ...], rows: list[Row]) -> None:
    """Print the rows as a table."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    # A file or a pipe has no width: room for all columns, not the 80 characters of a bare terminal.
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print()


def surroundings() -> str:
    """Name versions, processor, threads and the GPU."""
    versions = (
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, qdqpatch {qdqpatch.__version__}"
    )
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{versions}; {processor()}, threads: {torch.get_num_threads()}{gpu}"


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
