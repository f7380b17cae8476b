"""The runtimes: what a session takes and gives, and errors in one form."""

import dataclasses
import importlib
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported import VOCABULARY, WIDTH, write_onnx, write_openvino

from qdqpatch.engines.sessions import ENGINES, ONNX_RUNTIME, OPENVINO, REDUCED, Engine, Input, Session
from qdqpatch.errors import EngineError

BATCH = {
    "input_ids": torch.tensor([[1, 2, 3], [4, VOCABULARY - 1, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    "token_type_ids": torch.zeros(2, 3, dtype=torch.int64),  # which the model does not take
}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param]


@pytest.fixture
def file(tmp_path: Path, engine: Engine) -> Path:
    """A file that the engine loads: OpenVINO's own form for OpenVINO."""
    path = write_onnx(tmp_path / "model.onnx")
    return write_openvino(tmp_path / "model.xml", path) if engine is OPENVINO else path


def test_a_float_model_has_no_integers_that_saturate(
    engine: Engine, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qdqpatch.engines.sessions.saturates", lambda: True)
    session = engine.load(file)
    assert not session.saturated
    assert session.note in (None, REDUCED)


@pytest.mark.parametrize("threads", [None, 1])
@pytest.mark.parametrize("exact", [False, True])
def test_a_file_is_loaded_and_run(engine: Engine, file: Path, threads: int | None, exact: bool) -> None:
    session = engine.load(file, threads=threads, exact=exact)
    assert session.inputs == tuple(
        Input(name, (None, None), "int64") for name in ("input_ids", "attention_mask")
    )
    assert session.input_names == ("input_ids", "attention_mask")
    if exact:
        assert session.precision == "float32"
    (weight,) = (
        initializer
        for initializer in onnx.load(file.with_name("model.onnx")).graph.initializer
        if initializer.dims == [VOCABULARY, WIDTH]
    )
    table = onnx.numpy_helper.to_array(weight)
    ids, mask = BATCH["input_ids"].numpy(), BATCH["attention_mask"].numpy()
    found = session.run_tensors(BATCH)
    assert found.keys() == {"logits"}
    np.testing.assert_allclose(
        found["logits"], (table[ids] * mask[..., None]).sum(1), atol=1e-6 if exact else 0.1
    )
    kept = found["logits"].copy()
    session.run_tensors(BATCH | {"attention_mask": torch.zeros(2, 3, dtype=torch.int64)})
    assert (found["logits"] == kept).all()  # not overwritten by the next run


def test_a_fixed_size_is_told(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx", sizes=(2, "sequence"))
    for engine in ENGINES.values():
        assert {value.shape for value in engine.load(path).inputs} == {(2, None)}


def test_a_missing_input_is_named(engine: Engine, file: Path) -> None:
    session = engine.load(file)
    with pytest.raises(
        EngineError, match=r"^The model needs the inputs attention_mask, which were not given\.$"
    ):
        session.run_tensors({"input_ids": BATCH["input_ids"]})


def test_a_run_that_fails(engine: Engine, file: Path) -> None:
    if engine is OPENVINO and len(os.sched_getaffinity(0)) == 1:
        pytest.skip("OpenVINO that is held to one core says nothing of a run that fails")
    outside = BATCH | {"attention_mask": torch.ones(2, 5, dtype=torch.int64)}
    with pytest.raises(EngineError, match=r"^The engine failed to run the model: "):
        engine.load(file).run_tensors(outside)
    session = Session((), lambda inputs: {}["missing"])
    with pytest.raises(EngineError, match=r"^The engine failed to run the model: 'missing'$"):
        session.run({})


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_files_that_cannot_be_loaded(engine: Engine, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / f"model{engine.suffixes[0]}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=f"^{engine.name} cannot load {path}: "):
        engine.load(path)


def test_an_engine_that_is_not_installed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine.version == version(engine.package)
    monkeypatch.setitem(sys.modules, engine.package, None)
    message = f"^Running models in {engine.name} needs {engine.package}: pip install {engine.package}$"
    with pytest.raises(EngineError, match=message):
        engine.load(Path("model.onnx"))
    assert dataclasses.replace(engine, package="no-such-package").version is None


def test_a_module_of_another_distribution_has_a_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of onnxruntime-gpu, which pip knows by another name than the module's."""

    def unknown(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("qdqpatch.engines.sessions.version", unknown)
    assert ONNX_RUNTIME.version == importlib.import_module("onnxruntime").__version__


def test_one_thread_starts_no_others(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    ONNX_RUNTIME.load(path, threads=1)
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("threads are counted in /proc")
    before = len(os.listdir(tasks))
    session = ONNX_RUNTIME.load(path, threads=1)
    assert len(os.listdir(tasks)) == before
    more = ONNX_RUNTIME.load(path, threads=4)
    assert len(os.listdir(tasks)) == before + 3
    del session, more
