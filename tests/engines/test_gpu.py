"""Engines on a GPU: asked for without one, a line; with one, ONNX Runtime's provider is what runs."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from encoders import Style, write_encoder

from qdqpatch.choices import GPU_RUNNERS
from qdqpatch.cli import main
from qdqpatch.engines import gpu
from qdqpatch.engines.gpu import GPU_ENGINES
from qdqpatch.engines.models import find_contenders
from qdqpatch.errors import EngineError


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(write_encoder(tmp_path / "model.onnx", Style()))


def test_the_names_are_those_of_the_engines() -> None:
    assert tuple(GPU_ENGINES) == GPU_RUNNERS


@pytest.mark.parametrize("engine", GPU_RUNNERS)
def test_without_a_gpu_there_is_one_line(file: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "has_gpu", lambda: False)
    result = CliRunner().invoke(main, ["bench", file, "--engine", engine])
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: {engine} needs an NVIDIA GPU with its driver, and this machine has none.\n"
    )


def test_what_is_missing_beside_the_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "has_gpu", lambda: True)
    install = "Running models in onnxruntime-cuda needs onnxruntime: pip install onnxruntime-gpu"
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    assert GPU_ENGINES["onnxruntime-cuda"].lacking() == install
    modules = {"onnxruntime": SimpleNamespace(get_available_providers=lambda: ["CPUExecutionProvider"])}
    monkeypatch.setattr(gpu.importlib, "import_module", modules.__getitem__)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: modules.get(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert GPU_ENGINES["onnxruntime-cuda"].lacking() == (
        "This ONNX Runtime has no CUDAExecutionProvider: pip install onnxruntime-gpu"
    )
    assert GPU_ENGINES["tensorrt"].lacking() == (
        "Running models in tensorrt needs tensorrt: pip install tensorrt"
    )
    modules["tensorrt"] = SimpleNamespace()
    assert GPU_ENGINES["tensorrt"].lacking() == "tensorrt needs a torch with CUDA for its memory."


def test_engines_on_a_gpu_count_where_they_are_wanted(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "has_gpu", lambda: True)
    monkeypatch.setattr(
        gpu.GpuEngine, "lacking", lambda engine: None if engine.provider else f"no {engine.name}"
    )
    on_gpu = ["onnxruntime-cuda", "onnxruntime-tensorrt"]
    assert [found.engine for found in find_contenders([file], gpu=True)][-2:] == on_gpu
    assert [found.engine for found in find_contenders([file], on_gpu[:1], gpu=True)] == on_gpu[:1]
    assert not {found.engine for found in find_contenders([file])} & {*GPU_RUNNERS}
    with pytest.raises(EngineError, match="no tensorrt"):
        find_contenders([file], ["tensorrt"], gpu=True)


def test_the_provider_runs_the_file(file: str) -> None:
    import onnxruntime

    asked = []

    def session(path: str, options: object, providers: list) -> onnxruntime.InferenceSession:
        asked.extend(providers)
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    fake = SimpleNamespace(InferenceSession=session, SessionOptions=onnxruntime.SessionOptions)
    opened = GPU_ENGINES["onnxruntime-tensorrt"]._open(fake, Path(file), None, False)
    assert [provider[0] if isinstance(provider, tuple) else provider for provider in asked] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
    ]
    feed = {"input_ids": np.arange(16)[None] % 16, "mask": np.zeros((1, 1, 1, 16), np.float32)}
    (found,) = opened.run(feed).values()
    assert found.shape[:2] == (1, 16)
    assert {value.name for value in opened.inputs} == {*feed}
