import os
from pathlib import Path

import exported
import pytest

from qdqpatch.engines.telemetry import no_telemetry


def test_openvino_sends_nothing(tmp_path: Path) -> None:
    exported.write_openvino(tmp_path / "m.xml", exported.write_onnx(tmp_path / "m.onnx"))
    telemetry = pytest.importorskip("openvino_telemetry")
    assert telemetry.Telemetry().backend.app_name == "OVC"
    assert not telemetry.Telemetry().consent


@pytest.mark.parametrize("before", [None, "1"])
def test_the_variable_is_put_back(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    monkeypatch.delenv("CI", raising=False)
    if before is not None:
        monkeypatch.setenv("CI", before)
    with no_telemetry():
        assert os.environ["CI"] == "true"
    assert os.environ.get("CI") == before


@pytest.mark.parametrize("before", [None, "1"])
def test_threads_that_overlap_put_it_back_together(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    monkeypatch.delenv("CI", raising=False)
    if before is not None:
        monkeypatch.setenv("CI", before)
    one, other = no_telemetry(), no_telemetry()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert os.environ["CI"] == "true"
    other.__exit__(None, None, None)
    assert os.environ.get("CI") == before
