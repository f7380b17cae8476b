"""A file that computes something else than the model is not kept, and a right one replaces it whole."""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx_ir as ir
import pytest
from exports import export as export_again

from qdqpatch.errors import ExportError
from qdqpatch.exporter.graph import Rewriter
from qdqpatch.exporter.rules import integer_linear
from qdqpatch.exporter.rules.integer_attention import IntegerAttention
from qdqpatch.exporter.rules.integer_linear import IntegerLinear
from qdqpatch.exporter.targets import onnxruntime
from qdqpatch.output.folder import OutputFolder

TOKENS = "BertForTokenClassification"
ORIGINAL = onnxruntime.TARGET


class WithoutMask(IntegerAttention):
    """Attention that sees padding."""

    def rewrite(self, rewriter: Rewriter, node: ir.Node) -> None:
        node.replace_input_with(3, None)
        super().rewrite(rewriter, node)


class WithoutScaling(IntegerAttention):
    """Attention without 1/sqrt(d)."""

    def rewrite(self, rewriter: Rewriter, node: ir.Node) -> None:
        node.attributes["scaling"] = ir.AttrFloat32("scaling", 1.0)
        super().rewrite(rewriter, node)


class NotANumber(IntegerLinear):
    """A Linear that spoils the classifier's bias too."""

    def rewrite(self, rewriter: Rewriter, node: ir.Node) -> None:
        super().rewrite(rewriter, node)
        for name, value in rewriter.graph.initializers.items():
            if name.endswith("classifier.bias"):
                value.const_value = ir.tensor(np.full(3, np.nan, np.float32), name=name)


def target(*rules: Any) -> Any:
    """Return ONNX Runtime's target with other rules for the first two operators."""
    (linear, attention, *others), last = ORIGINAL.passes
    by_operator = {linear.operator: linear, attention.operator: attention}
    by_operator |= {rule.operator: rule for rule in rules}
    return dataclasses.replace(ORIGINAL, passes=((*by_operator.values(), *others), last))


def small(path: Path, **options: Any) -> Any:
    model = models.calibrated(TOKENS)
    before = models.snapshot(model)
    try:
        return export_again(model, path, shape=(2, 8), **options)
    finally:
        models.assert_unchanged(model, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (WithoutMask(), "The file does not compute what the model does: logits is off by"),
        (WithoutScaling(), "The file does not compute what the model does: logits is off by"),
        (NotANumber(), "The file's logits has the shape .* or is not finite"),
    ],
)
def test_a_wrong_file_is_not_kept(
    rule: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "TARGET", target(rule))
    with OutputFolder.open(tmp_path / "out").staged() as folder:
        (folder / "old.txt").write_text("text")
    batches = None
    if isinstance(rule, WithoutMask):  # attention of a tiny model is near the mean, so that little would show
        batches = [models.inputs(length=8)]
        batches[0]["attention_mask"][:, 2:] = 0
    with pytest.raises(ExportError, match=f"{message}.*Nothing was written"):
        small(tmp_path / "out", force=True, batches=batches)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["old.txt", "out", "qdqpatch.json"]


@pytest.mark.slow
def test_swapped_scales_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    product = integer_linear.multiply

    def swapped(rewriter: Rewriter, left: Any, right: Any, *rest: Any) -> ir.Value:
        if right[1].axis is None:
            return product(rewriter, left, right, *rest)
        scales = dataclasses.replace(right[1], scale=right[1].scale[::-1].copy())
        return product(rewriter, left, (right[0], scales, right[2]), *rest)

    monkeypatch.setattr(integer_linear, "multiply", swapped)
    with pytest.raises(ExportError, match="logits is off by"):
        small(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_right_file_replaces_the_folder(
    tmp_path: Path,
) -> None:
    with OutputFolder.open(tmp_path / "out").staged() as folder:
        (folder / "old.txt").write_text("text")
    said: list[str] = []
    batches = [models.inputs(length=8)]
    result = small(tmp_path / "out", force=True, batches=batches, progress=said.append)
    assert result.comparisons[0].predictions == 16  # of the batch that was given
    shown = (
        r"Wrote \S+model\.onnx: 0\.\d MB for onnxruntime\.\n"
        r"\d+ of \d+ matmuls run as integer kernels\. Float:\n(  .*\n)+"
        r"Compared with the model in onnxruntime .*: logits differs by .* 0 of 16 predictions differ\."
    )
    assert re.fullmatch(shown, repr(result))
    assert said == [
        "Tracing the model",
        "Writing onnx/model.onnx",
        "Comparing with the model in onnxruntime",
        "Counting integer kernels",
    ]
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")} == {
        "out/README.md",
        "out/config.json",
        "out/export.json",
        "out/onnx/model.onnx",
        "out/onnx/model.onnx.data",
        "out/onnx/model_quantized.onnx",
        "out/qdqpatch.json",
    }


@pytest.mark.slow
def test_without_a_check_no_engine_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "TARGET", target(WithoutMask()))
    result = small(tmp_path / "out", check=False)
    assert (result.comparisons, result.engine) == (None, None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = small(tmp_path / "out", check=False, force=True)
    assert (result.comparisons, result.engine, result.operations) == (None, None, None)
