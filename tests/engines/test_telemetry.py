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
