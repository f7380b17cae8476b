"""`qdqpatch lint`: its tables, its JSON, its exit code, and errors in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from encoders import QDQBERT, Style, write_encoder

from qdqpatch.cli import main


def lint(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["lint", *map(str, arguments)])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers as the original QDQBERT's export has them."""
    return write_encoder(tmp_path_factory.mktemp("lint") / "qdqbert.onnx", QDQBERT, layers=2)


def test_the_table_says_what_breaks_where(original: Path) -> None:
    result = lint(original, "--target", "onnxruntime")
    assert result.exit_code == 1
    rows = {tuple(line.split()[:2]): line for line in result.stdout.splitlines() if "encoder.layer." in line}
    assert len(rows) == 10
    query = rows["encoder.layer.{0..1}.attention.self.query", "linear"]
    assert query.rstrip().endswith("stays float: signed-input, float-weight, transposed-weight")
    assert "signed-input: stays float, 8 operations" in result.stdout
    assert "its input is int8, and 4 operations read it (6x)" in result.stdout
    words = " ".join(result.stdout.split())
    assert "Why The integer kernels of x64 take an unsigned input." in words
    assert "Fix Make the input uint8 with zero point 128" in words
    assert "See ONNX Runtime, QDQS8ToU8Transformer https://github.com/microsoft/onnxruntime/" in words
    last = result.stdout.splitlines()[-1]
    assert last == (
        "qdqbert.onnx breaks 6 rules of onnxruntime. Fine: 0 of 12 (linear), 0 of 2 (query x key), "
        "0 of 2 (probabilities x value), 0 of 4 (residual add)."
    )


def test_a_clean_file(original: Path) -> None:
    result = lint(original, "--target", "openvino")
    assert result.exit_code == 0
    assert result.stdout.count(" fine") == 10 + 1
    last = result.stdout.splitlines()[-1]
    assert last == "qdqbert.onnx breaks no rule of openvino: 20 operations are fine."


def test_one_finding(tmp_path: Path) -> None:
    file = write_encoder(tmp_path / "model.onnx", Style(scale="after"))
    result = lint(file, "--target", "tensorrt")
    assert result.exit_code == 1
    assert "scale-after-matmul: slower, 1 operation\n" in result.stdout
    assert (
        "model.onnx breaks 1 rule of tensorrt. Fine: 6 of 6 (linear), 0 of 1 (query x key)" in result.stdout
    )


def test_json(original: Path) -> None:
    result = lint(original, "--target", "tensorrt", "--json")
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert (data["file"], data["target"], len(data["sites"])) == (str(original), "tensorrt", 20)
    assert data["sites"][3] == {
        "path": "encoder.layer.0.attention.self",
        "operation": "query x key",
        "operator": "MatMul",
        "findings": [{"rule": "scale-after-matmul", "detail": "its scores are scaled after the matmul"}],
    }
    (rule,) = data["rules"].items()
    assert rule[0] == "scale-after-matmul"
    assert rule[1]["effect"] == "slower"
    assert rule[1]["operations"] == 2
    assert rule[1]["documents"][0]["title"] == "TensorRT, Fused Attention"
    assert set(rule[1]) == {"effect", "reason", "fix", "documents", "operations"}
    clean = lint(original, "--target", "openvino", "--json")
    assert clean.exit_code == 0
    assert json.loads(clean.stdout)["rules"] == {}


def test_errors_are_one_line(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    for file, fragment in (
        (tmp_path / "missing.onnx", "does not exist"),
        (tmp_path / "text.onnx", "as an ONNX"),
        (tmp_path, "is a folder; name the file"),
    ):
        result = lint(file, "--target", "tensorrt")
        assert result.exit_code == 1
        assert result.stderr.startswith(f"Error: {file} ")
        assert fragment in result.stderr
        assert len(result.stderr.splitlines()) == 1
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    result = lint(original, "--target", "tensorrt")
    assert result.exit_code == 1
    assert "Reading ONNX needs onnx-ir: pip install onnx-ir" in result.stderr
    assert lint(original).exit_code == 2
    assert lint(original, "--target", "tvm").exit_code == 2


def test_help_needs_no_onnx() -> None:
    code = (
        "import sys; from qdqpatch.cli import main; print('onnx_ir' in sys.modules or 'onnx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
