"""How weights are calibrated for the processor that will run a file."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no file."""
    monkeypatch.setattr("qdqpatch.exporter.export.prepare_exports", lambda *arguments: [])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "max"),
        (("--weight-method", "mse"), "mse"),
        (("--export", "onnxruntime", "--cpu", "avx2"), "pairs"),
        (("--export", "openvino", "--export", "tensorrt", "--cpu", "avx2"), "pairs"),
        (("--export", "onnxruntime", "--cpu", "avx2", "--weight-method", "max"), "max"),
        (("--export", "onnxruntime", "--cpu", "vnni"), "max"),
        (("--export", "tensorrt"), "max"),
    ],
)
def test_the_ranges_of_weights_suit_the_processor_unless_they_are_asked_for(
    run,
    float_checkpoint: Path,
    sentences: Path,
    seen: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    expected: str,
) -> None:
    monkeypatch.setattr("qdqpatch.exporter.asked.saturates", lambda: False)
    result = run("convert", float_checkpoint, "out", "--calib", sentences, *options)
    assert result.exit_code == 0, result.output
    assert seen["weight_method"] == expected


@pytest.mark.parametrize(("saturates", "expected"), [(True, "pairs"), (False, "max")])
def test_a_file_is_for_this_processor_unless_another_is_named(
    run,
    float_checkpoint: Path,
    sentences: Path,
    seen: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    saturates: bool,
    expected: str,
) -> None:
    monkeypatch.setattr("qdqpatch.exporter.asked.saturates", lambda: saturates)
    result = run("convert", float_checkpoint, "out", "--calib", sentences, "--export", "onnxruntime")
    assert result.exit_code == 0, result.output
    assert seen["weight_method"] == expected
