"""What every test needs: global settings put back, models, and an empty folder."""

import gzip
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import models
import pytest
import reports
import torch
from hypothesis import HealthCheck, settings
from pytorch_quantization.nn import QuantLinear, TensorQuantizer
from texts import Write
from transformers import PreTrainedModel

from qdqpatch.nn.quantizer import TensorQuantizer as OurQuantizer
from qdqpatch.report.page import render_page

torch.set_num_threads(1)

# No test is one of time: on a machine that does something else too, examples may take as long as they like.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# torch has its oneDNN read the setting now. OpenVINO's own oneDNN shall not: it has no kernels for so little.
torch.nn.functional.conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1))
del os.environ["ONEDNN_MAX_CPU_ISA"]


@pytest.fixture(autouse=True)
def global_settings() -> Iterator[None]:
    """Put back what pytorch-quantization keeps on its classes."""
    native = TensorQuantizer.use_fb_fake_quant
    descriptors = QuantLinear.default_quant_desc_input, QuantLinear.default_quant_desc_weight
    yield
    assert "use_fb_fake_quant" not in vars(OurQuantizer), (
        "to be set on the toolkit's class, which is put back"
    )
    TensorQuantizer.use_fb_fake_quant = native
    QuantLinear.set_default_quant_desc_input(descriptors[0])
    QuantLinear.set_default_quant_desc_weight(descriptors[1])


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import one of the benchmarks, which import each other by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module


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


@pytest.fixture(scope="module")
def traced_once() -> Iterator[None]:
    """Let exports take what was traced of an equal model, as `exporter/test_tracing.py` tells of which."""
    from traces import all_traces

    kept = all_traces()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qdqpatch.exporter.tracing.Traces", lambda: kept)
        yield


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
