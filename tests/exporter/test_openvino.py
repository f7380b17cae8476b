"""`export` for OpenVINO: as IR, with the model's numbers, and kernels of integers."""

from pathlib import Path

import models
import pytest
import torch
from exports import assert_close, export, made

from qdqpatch.engines.sessions import OPENVINO

pytestmark = pytest.mark.slow

CASES = ["all parts", "Linears alone", "zero ranges", "some off", "BertForMaskedLM"]


@pytest.mark.parametrize("case", CASES)
def test_the_file_computes_what_the_model_does(case: str) -> None:
    exported = made(case, "openvino")
    models.assert_unchanged(exported.model, exported.before)
    inputs = models.inputs(exported.name, seed=5)
    with torch.no_grad():
        outputs = models.flatten(exported.model(**inputs))
    session = OPENVINO.load(exported.result.file, threads=1, exact=True)
    sizes = (2, 8) if case == "zero ranges" else (None, None)
    assert {value.shape for value in session.inputs} == {sizes}
    found = session.run_tensors(inputs)
    # The float pooler, which nothing reads, is not in the file.
    assert outputs.keys() - found.keys() <= {"pooler_output"}
    assert_close({name: outputs[name] for name in found}, found)


@pytest.mark.parametrize("case", CASES)
def test_what_is_written(case: str) -> None:
    result = made(case, "openvino").result
    files = {
        "config.json",
        "export.json",
        "openvino_model.bin",
        "openvino_model.xml",
        "qdqpatch.json",
        "README.md",
    }
    assert {path.name for path in result.folder.rglob("*.*")} == files
    assert result.file == result.folder / "openvino/openvino_model.xml"
    assert result.size == sum(path.stat().st_size for path in result.folder.glob("openvino/*.*"))
    assert result.engine == f"openvino {OPENVINO.version}"
    graph = result.file.read_text(encoding="utf-8")
    assert "stack_trace" not in graph
    assert "site-packages" not in graph


def test_a_folder_may_have_a_comma_in_its_name(tmp_path: Path) -> None:
    model = made("all parts", "openvino").model
    written = export(model, tmp_path / "base, int8", "openvino", check=False)
    assert OPENVINO.load(written.file, threads=1).inputs
    assert written.file.with_suffix(".bin").is_file()


def test_integer_kernels_are_counted() -> None:
    whole, placed = made("all parts", "openvino").result, made("Linears alone", "openvino").result
    assert [operation.integer for operation in whole.operations] == [True] * 18
    left = {operation.name: operation.reason for operation in placed.operations if not operation.integer}
    assert len(placed.operations) - len(left) == 12
    assert [reason.count("matmul_") for reason in left.values()] == [2] * 4


def test_what_the_model_leaves_float_is_not_counted_as_integer() -> None:
    result = made("some off", "openvino").result
    left = {operation.name for operation in result.operations if not operation.integer}
    layers = "bert.encoder.layer"
    assert {
        f"{layers}.0.attention.self.probabilities_x_value",
        f"{layers}.1.attention.self.query_x_key",
        f"{layers}.1.attention.output.dense",
    } <= left
