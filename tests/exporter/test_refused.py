"""`export` refuses what it cannot do; nothing is left behind."""

import dataclasses
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from exports import calibrated
from torch import Tensor
from transformers import BertModel, PreTrainedModel

import qdqpatch
from qdqpatch import QDQConfig
from qdqpatch.errors import CheckpointError, DataError, ExportError, NotQuantizedError
from qdqpatch.exporter.export import export
from qdqpatch.exporter.options import ExportOptions
from qdqpatch.exporter.symbolic_operators import symbolic_attention

TOKENS = "BertForTokenClassification"


def overridden(*overrides: str) -> PreTrainedModel:
    return calibrated("BertModel", QDQConfig(overrides=overrides))


REFUSED: list[tuple[Callable[[], PreTrainedModel], dict[str, Any], type[Exception], str]] = [
    (models.float_model, {}, NotQuantizedError, r"is a float model: call qdqpatch\.quantize"),
    (
        models.uncalibrated,
        {},
        ExportError,
        r"^28 quantizers have no range yet, the first one encoder\.layer\.0\.attention\..*\. Calibrate the "
        r"model first: qdqpatch\.calibrate\(model, batches\)\.$",
    ),
    (
        lambda: overridden("*.output.dense._input_quantizer=num_bits:4"),
        {"shape": (1, 8)},
        ExportError,
        r"^encoder\.layer\.0\.attention\.output\.dense\._input_quantizer has 4 bits",
    ),
    (
        models.calibrated,
        {"target": "tvm"},
        ExportError,
        r"^There is no target 'tvm'; there are tensorrt, onnxruntime, openvino\.$",
    ),
    (
        models.calibrated,
        {"float_weights": True},
        ExportError,
        r"^onnxruntime needs the weights in int8; float_weights is for TensorRT alone\.$",
    ),
    (
        models.calibrated,
        {"target": "tensorrt", "vnni": True},
        ExportError,
        r"^tensorrt gets the same file for every processor; vnni is for onnxruntime alone\.$",
    ),
    (
        models.calibrated,
        {"target": "openvino", "vnni": False},
        ExportError,
        r"^openvino gets the same file for every processor; vnni is for onnxruntime alone\.$",
    ),
    (
        models.calibrated,
        {"shape": (1, 33)},
        ExportError,
        "^The model has 32 positions; sequences of 33 do not",
    ),
    (
        models.calibrated,
        {"target": ["onnxruntime", "tensorrt"]},
        ExportError,
        "^onnxruntime and tensorrt both write onnx/model.onnx",
    ),
    (models.calibrated, {"target": ("openvino", "tvm")}, ExportError, "^There is no target 'tvm'"),
    (models.calibrated, {"target": ()}, ExportError, "^Name one target or several"),
    (models.calibrated, {"target": ["openvino"] * 2}, ExportError, "^Name one target or several"),
    (
        models.calibrated,
        {"target": ["onnxruntime", "openvino"], "dtype": "float16"},
        ExportError,
        "^dtype is for TensorRT; onnxruntime gets",
    ),
    (
        models.calibrated,
        {"batches": ["the cat"]},
        DataError,
        r"^Batch 1 is a str; each must be a mapping .* Tokenize texts first",
    ),
    (
        models.calibrated,
        {"batches": 3},
        DataError,
        "^Batches are a list or another iterable of them, not a int",
    ),
    (models.calibrated, {"batches": iter(())}, ExportError, "^There is no batch to compare on"),
    (models.calibrated, {"tokenizer": "ckpt"}, DataError, r"pass AutoTokenizer\.from_pretrained\('ckpt'\)"),
    (models.calibrated, {"shape": (0, 8)}, ExportError, "^A batch and a sequence have at least 1"),
]


@pytest.mark.parametrize(("build", "options", "error", "message"), REFUSED)
def test_what_cannot_be_exported(
    build: Callable, options: dict, error: type[Exception], message: str, tmp_path: Path
) -> None:
    model = build()
    before = models.snapshot(model)
    with pytest.raises(error, match=message):
        export(model, tmp_path / "new" / "out", **options)
    assert list(tmp_path.iterdir()) == []
    models.assert_unchanged(model, before)


class Branching(BertModel):
    """Goes by the values of its inputs."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        if int(input_ids.sum()) > 5:
            input_ids = input_ids.flip(1)
        return super().forward(input_ids, attention_mask)


class Listening(BertModel):
    """Takes sounds."""

    main_input_name = "input_values"

    def forward(self, input_values: Tensor) -> Any:
        return super().forward(input_values.long())


class Boxed(BertModel):
    """Takes boxes, and its config does not say how large they are."""

    def forward(self, input_ids: Tensor, bbox: Tensor) -> Any:
        return super().forward(input_ids)


def test_models_that_cannot_be_traced_or_take_something_else_are_refused_in_one_line(tmp_path: Path) -> None:
    for kind, message in (
        (
            Branching,
            r"^Branching cannot be traced with inputs of any batch and length \(input_ids \(2, 8\), "
            r"attention_mask \(2, 8\)\), and nothing was written: [^\n]*guard[^\n]*\. See whether one "
            r"shape is possible \(shape=\(1, 128\)\)\. In torch its checkpoint runs as it is\.$",
        ),
        (Boxed, r"^Boxed takes what no example .*max_2d_position_embeddings.*\)\. In torch its checkpoint"),
        (
            Listening,
            r"^There are examples .* texts \(input_ids\) and .* Listening takes input_values\. In torch",
        ),
    ):
        with pytest.raises(ExportError, match=message):
            export(kind(models.config()), tmp_path / "out", as_float=True)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argument", [{"softcap": 2.0}, {"s_aux": torch.zeros(1)}])
def test_attention_that_the_operator_does_not_say_is_refused(argument: dict[str, Any]) -> None:
    operands = [torch.zeros(1, 1, 2, 4)] * 3
    with pytest.raises(ExportError, match=r"^Identity .*, which cannot be exported yet\.$"):
        symbolic_attention(torch.nn.Identity(), *operands, None, **argument)


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old.txt").write_text("text")
    for name, message in (
        ("file", "is a file; name a folder to write to"),
        (
            "full",
            "is not empty, and qdqpatch did not write all that is in it: old.txt. Choose another folder",
        ),
        ("file/out", "is not a folder that you may write in"),
        ("model.onnx", r"model\.onnx is the name of a file, .*: leave \.onnx out"),
    ):
        with pytest.raises(CheckpointError, match=message):
            export(models.calibrated(), tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "old.txt"]


@pytest.mark.parametrize("missing", [("onnx",), ("onnx_ir", "onnxscript"), ("openvino",)])
def test_missing_packages_are_named(
    missing: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    names = " and ".join(missing).replace("_", "-")
    with pytest.raises(ExportError) as raised:
        export(models.calibrated(), tmp_path / "out", "openvino")
    assert str(raised.value) == f"Exporting needs {names}: pip install {' '.join(missing).replace('_', '-')}"
    assert list(tmp_path.iterdir()) == []


def test_export_is_public() -> None:
    assert qdqpatch.export is export


def test_tensorrt_has_signed_levels_alone(tmp_path: Path) -> None:
    config = QDQConfig(overrides={"*.matmul_a_input_quantizer": {"unsigned": True}})
    with pytest.raises(ExportError, match=r"matmul_a_input_quantizer is unsigned; TensorRT quantizes symm"):
        export(calibrated(TOKENS, config), tmp_path / "out", "tensorrt")
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_nan_is_not_exported(tmp_path: Path) -> None:
    model = models.calibrated(TOKENS)
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    message = (
        r"^This BertForTokenClassification holds NaN or infinity in 1 of \d+ tensors: classifier\.bias\."
    )
    with pytest.raises(ExportError, match=message):
        export(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_options_are_the_arguments_of_export_with_their_defaults() -> None:
    arguments = inspect.signature(export).parameters
    expected = {name: one.default for name, one in arguments.items()}
    for other in ("model", "out", "target", "force"):
        del expected[other]
    assert {one.name: one.default for one in dataclasses.fields(ExportOptions)} == expected
