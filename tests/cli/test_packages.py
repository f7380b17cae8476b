"""A package that a command needs and that is absent is one line before the work, with how to install it."""

import os
import sys
from pathlib import Path

import pytest
import transformers.trainer  # noqa: F401  # it takes accelerate for absent or there when it is imported
from commands import invoke

CHECK = (
    "Comparing the file with the model needs onnxruntime: pip install onnxruntime, "
    "or leave that out: --no-check"
)

ABSENT = [
    ("export {}/int8 out", "onnxruntime", CHECK),
    ("export {}/int8 out --target tensorrt", "onnxruntime", CHECK),
    ("export {}/int8 out --target openvino", "openvino", "Exporting needs openvino: pip install openvino"),
    ("export {}/int8 out --no-check", "onnxscript", "Exporting needs onnxscript: pip install onnxscript"),
    ("export {}/int8 out", "onnx_ir", "Exporting needs onnx-ir: pip install onnx-ir"),
    (
        "convert {0}/float out --calib {0}/texts.txt --export openvino",
        "openvino",
        "Exporting needs openvino: pip install openvino",
    ),
    (
        "convert {0}/float out --calib {0}/texts.txt --export onnxruntime",
        "onnxruntime",
        "Comparing the file with the model needs onnxruntime: pip install onnxruntime, or write the file "
        "afterwards: qdqpatch export OUT FOLDER --no-check",
    ),
    (
        "optimize {0}/float out --data {0}/rows.tsv --target openvino",
        "openvino",
        "Exporting needs openvino: pip install openvino",
    ),
    (
        "optimize {0}/float out --data {0}/rows.tsv",
        "onnxscript",
        "Exporting needs onnxscript: pip install onnxscript",
    ),
    (
        "optimize {0}/float out --data {0}/rows.tsv",
        "onnxruntime",
        "Judging models for onnxruntime needs onnxruntime: pip install onnxruntime",
    ),
    (
        "convert {}/float out --calib nyu-mll/glue",
        "datasets",
        "There is no file nyu-mll/glue, and a data set on the hub needs datasets: pip install datasets",
    ),
    (
        "train {0}/float out --data {0}/rows.tsv",
        "accelerate",
        "Training needs accelerate: pip install accelerate",
    ),
    ("eval a.onnx --data {}/rows.tsv", "onnxruntime", "Nothing that runs a.onnx is installed: pip install"),
    (
        "eval a.xml --data {}/rows.tsv --engine openvino",
        "openvino",
        "Running models in openvino needs openvino: pip install openvino",
    ),
    ("bench a.xml", "openvino", "Nothing that runs a.xml is installed: pip install openvino"),
    ("bench {}/float --plot a.png", "matplotlib", "The chart needs matplotlib: pip install matplotlib"),
    (
        "sensitivity {0}/float --data {0}/rows.tsv --plot a.png",
        "matplotlib",
        "The chart needs matplotlib: pip install matplotlib",
    ),
    ("inspect {}/int8 --html a.html", "jinja2", "The page needs jinja2: pip install jinja2"),
    ("lint a.onnx --target tensorrt", "onnx_ir", "Reading ONNX needs onnx-ir: pip install onnx-ir"),
    (
        "export {}/int8 out --target tensorrt --build",
        "tensorrt_rtx_bindings",
        "Compiling needs TensorRT for RTX: pip install tensorrt-rtx-cu12-libs",
    ),
]


@pytest.mark.parametrize(("line", "package", "message"), ABSENT)
def test_an_absent_package(
    line: str, package: str, message: str, shelf: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.onnx", "a.xml"):
        Path(name).touch()
    blocked = ["onnxruntime", "openvino"] if line.startswith("eval a.onnx") else [package]
    for name in blocked:
        monkeypatch.setitem(sys.modules, name, None)
    result = invoke(*line.format(shelf).split())
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith(f"Error: {message}")
    assert len(result.stderr.splitlines()) == 1  # nothing was begun
    assert sorted(os.listdir()) == ["a.onnx", "a.xml"]


def test_a_file_that_is_not_compared_needs_no_engine(
    shelf: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = invoke("export", shelf / "int8", "out", "--no-check")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[-1] == "Not compared with the model: --no-check."
    assert Path("out/onnx/model.onnx").is_file()
