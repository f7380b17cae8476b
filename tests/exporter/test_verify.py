"""`qdqpatch verify`: what a folder's files still compute, and what is said where they do not."""

import json
import re
import shutil
from pathlib import Path

import onnx
import pytest
from commands import invoke

from qdqpatch.output.manifest import MANIFEST

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("traced_once")]


def test_verify(root: Path) -> None:
    result = invoke("verify", root / "out")
    assert result.exit_code == 0, result.output
    notes = "computes in bfloat16"  # of OpenVINO where the processor has it
    lines = [line for line in result.stdout.splitlines() if notes not in line]
    assert len(lines) == 4
    for line, file in zip(lines[::2], ("onnx/model.onnx", "openvino/openvino_model.xml"), strict=True):
        found = re.fullmatch(rf"{file} in \w+ [\w.-]+: lowest cosine ([\d.]+) of 3 texts\.", line)
        assert found is not None, line
        assert float(found[1]) > 0.999
    assert re.fullmatch(r"  batch 16 = batch 1: yes, padded = not padded: yes, \d threads = 1: yes", lines[1])


@pytest.mark.parametrize("in_file", [True, False])
def test_verify_finds_files_that_saturate_here(
    root: Path, in_file: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qdqpatch.engines.sessions.saturates", lambda: True)
    monkeypatch.setattr("qdqpatch.engines.sessions.may_saturate", lambda path: in_file)
    monkeypatch.setattr("qdqpatch.engines.sessions.may_saturate_in_openvino", lambda path: False)
    result = invoke("verify", root / "out")
    assert result.exit_code == int(in_file)
    if in_file:
        assert result.stderr.startswith("Error: onnx/model.onnx of "), result.output


def test_verify_finds_drift(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "out", tmp_path / "out")
    file = tmp_path / "out" / MANIFEST
    data = json.loads(file.read_text())
    data["canaries"][1]["vector"] = data["canaries"][1]["vector"][::-1]
    file.write_text(json.dumps(data))
    result = invoke("verify", tmp_path / "out", "--json")
    assert result.exit_code == 1
    for found in json.loads(result.stdout):
        assert found["drifts"]
        assert found["worst"] == min(found["values"])
        assert found["exactness"]["batch"] == 1
    assert result.stderr.startswith("Error: onnx/model.onnx, openvino/openvino_model.xml of "), result.output
    data["canaries"] = None
    file.write_text(json.dumps(data))
    result = invoke("verify", tmp_path / "out")
    assert result.exit_code == 1
    assert "has no canary texts in its qdqpatch.json" in result.stderr
    assert "has no exported file" in invoke("verify", root / "float").stderr
    assert "There is no folder" in invoke("verify", root / "nothing").stderr


def test_verify_goes_by_the_files_that_are_there(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "out", tmp_path / "out")
    shutil.rmtree(tmp_path / "out/openvino")
    for place in ("out", "out/onnx", "out/onnx/model.onnx"):
        result = invoke("verify", tmp_path / place, "--json")
        assert result.exit_code == 0, result.output
        assert [found["file"] for found in json.loads(result.stdout)] == ["onnx/model.onnx"]
    shutil.rmtree(tmp_path / "out/onnx")
    message = (
        "has none of the files that its qdqpatch.json tells of: onnx/model.onnx, openvino/openvino_model.xml."
    )
    assert message in invoke("verify", tmp_path / "out").stderr


def test_verify_tells_a_changed_file_from_drift(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "out", tmp_path / "out")
    path = tmp_path / "out/onnx/model.onnx"
    file = onnx.load(path)
    file.doc_string = "touched"
    path.unlink()  # model_quantized.onnx may be a link to it
    onnx.save(file, path)
    result = invoke("verify", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: onnx/model.onnx of "), result.output
    assert "was changed since it was written" in result.stderr
