"""What every test needs: reproducible arithmetic, no network, and global settings put back."""

import functools
import gc
import gzip
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

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("models", "adjusted", "processes")

import models
import reports
import torch
from pytorch_quantization.nn import QuantLinear, TensorQuantizer
from texts import Write
from transformers import PreTrainedModel

from qdqpatch.report.page import render_page

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
    "test_verbs.py",
    "test_public_names.py",
    "test_benchmarks.py",
    "test_notebooks.py",
    "patching/test_audit.py",
    "checkpoint/test_save_and_load.py",
    "cli/test_heads.py",
)
"""The groups that take longest, first to last, so that two workers end at about the same time."""

torch.set_num_threads(1)

# torch has its oneDNN read the setting now. OpenVINO's own oneDNN shall not: it has no kernels for so little.
torch.nn.functional.conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1))
del os.environ["ONEDNN_MAX_CPU_ISA"]


@functools.cache
def group_of(file: str) -> str:
    """Return what stays on one worker with a test file: all that shares `exports`, or the file alone."""
    text = (HERE / file).read_text(encoding="utf-8")
    return "exports" if "from exports import" in text or "import exports" in text else file


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
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker whole groups."""
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.partition("::")[0].removeprefix("tests/"))

    return GroupScheduling(config, log)


@pytest.fixture(autouse=True)
def global_settings() -> Iterator[None]:
    """Put back what pytorch-quantization keeps on its classes."""
    native = TensorQuantizer.use_fb_fake_quant
    descriptors = QuantLinear.default_quant_desc_input, QuantLinear.default_quant_desc_weight
    yield
    TensorQuantizer.use_fb_fake_quant = native
    QuantLinear.set_default_quant_desc_input(descriptors[0])
    QuantLinear.set_default_quant_desc_weight(descriptors[1])


@pytest.fixture(params=["toolkit", "fb"])
def arithmetic(request: pytest.FixtureRequest) -> str:
    """Run the test with the toolkit's own arithmetic, then with PyTorch's native one."""
    TensorQuantizer.use_fb_fake_quant = request.param == "fb"
    return request.param


@pytest.fixture(params=models.HEADS)
def head(request: pytest.FixtureRequest) -> str:
    """Run the test on every task head."""
    return request.param


@pytest.fixture(params=[*models.HEADS, models.CROSS])
def any_head(request: pytest.FixtureRequest) -> str:
    """Run the test on every task head and on a decoder with cross-attention."""
    return request.param


@pytest.fixture(scope="session")
def float_model() -> Callable[[str], PreTrainedModel]:
    """Give a fresh float model of a head, the same weights each time."""
    return models.float_model


@pytest.fixture(scope="session")
def uncalibrated() -> Callable[[str], PreTrainedModel]:
    """Give a fresh quantized model of a head, without ranges."""
    return models.uncalibrated


@pytest.fixture(scope="session")
def calibrated() -> Callable[[str], PreTrainedModel]:
    """Give a fresh quantized model of a head, with a range on every quantizer."""
    return models.calibrated


@pytest.fixture(scope="session")
def calibrated_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated checkpoint with what its quantizers saw; to be read only."""
    return reports.calibrated_checkpoint(tmp_path_factory.mktemp("report") / "calibrated")


@pytest.fixture(scope="session")
def page(calibrated_folder: Path) -> str:
    """The page of that checkpoint."""
    return render_page("calibrated", reports.HEAD, reports.reports_of(calibrated_folder))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(here: Path) -> Write:
    """Write a file into an empty folder, which is the current one."""

    def write(name: str, content: str | bytes) -> Path:
        data = content.encode() if isinstance(content, str) else content
        Path(name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return Path(name)

    return write
