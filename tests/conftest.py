"""How the tests run: with reproducible arithmetic, without a network, and what takes longest first.

What needs torch is in `support/common_fixtures.py`: who hands tests to others shall not wait for that.
"""

import functools
import gc
import os

# The reference files hold results to the last bit, and those depend on the instruction set that a kernel was
# built for and on how threads split a sum. `reference/make.py` made the same settings, before torch too.
os.environ.update(
    ATEN_CPU_CAPABILITY="default",
    MKL_CBWR="COMPATIBLE",
    ONEDNN_MAX_CPU_ISA="SSE41",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
)

# What is imported stays. Looking through its half a million objects again and again, as tests make and drop
# their own, took up to a quarter of the time of a test: `pytest_collection_finish` takes it out.
gc.disable()

# Tables are as wide as where there is no terminal; a worker of xdist would set the width of its own.
os.environ.pop("COLUMNS", None)

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("models", "adjusted", "commands", "processes", "saved")

HERE = Path(__file__).parent

COMPAT = (
    "calibration/test_calibrate.py",
    "calibration/test_padding.py",
    "checkpoint",
    "data/test_batches.py",
    "exporter/test_inputs.py",
    "nn/test_attention.py",
    "nn/test_guards.py",
    "patching",
    "rules",
    "test_composite.py",
    "test_modes.py",
    "test_parity.py",
    "training/test_trainer.py",
)
"""What faces transformers itself, and so runs with the oldest one too: folders and files."""

LONGEST = (
    "exporter/test_families.py",
    "exports",
    "test_docs.py",
    "test_notebooks.py",
    "test_verbs.py",
    "test_benchmarks.py",
    "test_compile_export.py",
    "cli/test_heads.py",
    "patching/test_audit.py",
    "optimizing/test_optimize.py",
    "checkpoint/test_save_and_load.py",
    "calibration/test_calibrate.py",
    "cli/test_cli.py",
    "calibration/test_families.py",
    "cli/test_processes.py",
    "test_public_names.py",
    "training/test_resume.py",
    "training/test_job.py",
    "bench/test_measure.py",
    "cli/test_images.py",
    "cli/test_sensitivity.py",
    "exporter/test_layout.py",
    "rules/test_heads.py",
    "rules/test_families.py",
    "training/test_distributed.py",
    "calibration/test_distributed.py",
    "checkpoint/test_qdqbert.py",
)
"""The groups that take longest, first to last, so that two workers end at about the same time."""


@functools.cache
def group_of(file: str) -> str:
    """Return what stays on one worker with a test file: all that shares `exports`, or the file alone."""
    text = (HERE / file).read_text(encoding="utf-8")
    return "exports" if "from exports import" in text or "import exports" in text else file


def pytest_configure(config: pytest.Config) -> None:
    """Load what tests need, where they run."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("common_fixtures")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what faces transformers, and begin with what takes longest."""
    places = {}
    for item in items:
        path = item.path.relative_to(HERE)
        if {str(path), *map(str, path.parents)} & {*COMPAT}:
            item.add_marker(pytest.mark.compat)
        group = group_of(path.as_posix())
        places[item] = LONGEST.index(group) if group in LONGEST else len(LONGEST)
    items.sort(key=places.__getitem__)


def pytest_collection_finish() -> None:
    """Collect garbage from now on, of what tests make, and seldom."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    """Leave alone from the next file on what the files before it imported and keep.

    The trainer of transformers collects all garbage there is several times in a run. Looking through what
    had come together until then took longer than the run.
    """
    yield
    if nextitem is not None and nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def with_room(call: Callable[[], Any]) -> Any:
    """Return what a function of no arguments returns, with room for its calls.

    From 3.11 on, CPython maps 16 KB more for the frames of calls wherever the last 16 KB are full, and
    unmaps them when that call returns: a loop that happens to stand there maps memory and faults at each
    step. Most of what tests spent in the kernel was that. One frame larger than all others takes megabytes
    at once, which those above it share; what none of them touches costs nothing.
    """
    return call()


with_room.__code__ = with_room.__code__.replace(co_stacksize=600_000)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Any:
    """Run a test as pytest does."""
    runner: Any = item.config.pluginmanager.get_plugin("runner")
    return with_room(lambda: runner.pytest_runtest_protocol(item, nextitem))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker whole groups."""
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.partition("::")[0].removeprefix("tests/"))

    return GroupScheduling(config, log)
