"""Temporary files where there is no room for them: one line says where, and how to have them elsewhere."""

import errno
import os
import tempfile
from pathlib import Path

import exported
import pytest

from qdqpatch.errors import CheckpointError, ConfigError, EngineError
from qdqpatch.exporter.targets import onnxruntime
from qdqpatch.output.temporary import temporary_folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_full_disk_is_named_with_the_remedy(place: Path) -> None:
    message = rf"^Cannot write {place}: No space left on device\. The variable TMPDIR names another folder"
    with pytest.raises(CheckpointError, match=message), temporary_folder():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(place.iterdir())


def test_what_else_goes_wrong_is_raised_as_it_is(place: Path) -> None:
    for error in (ConfigError("mine"), ValueError("mine")):
        with pytest.raises(type(error), match=r"^mine$"), temporary_folder():
            raise error
    assert not list(place.iterdir())


def test_what_the_engine_fails_to_write_is_said_so_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    exported.write_onnx(place / "model.onnx")
    assert onnxruntime.kernels(place / "model.onnx") == []  # it has no matmul

    class Occupied(tempfile.TemporaryDirectory[str]):
        """Where the engine cannot write its file, as if the disk were full."""

        def __enter__(self) -> str:
            Path(self.name, "optimized.onnx").mkdir()
            return self.name

    monkeypatch.setattr(tempfile, "TemporaryDirectory", Occupied)
    with pytest.raises(CheckpointError, match=r"onnxruntime failed to write there .*\. The variable TMPDIR"):
        onnxruntime.kernels(place / "model.onnx")
    (place / "model.onnx").write_bytes(b"none")
    with pytest.raises(EngineError, match=r"onnxruntime cannot load .*model\.onnx: "):
        onnxruntime.kernels(place / "model.onnx")
