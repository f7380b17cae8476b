"""`qdqpatch.lint`: each rule breaks where it should and nowhere else, and runtimes do what it says."""

import dataclasses
import platform
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from encoders import QDQBERT, Style, write_encoder
from engine_graphs import optimized
from onnx import helper

from qdqpatch.choices import TARGETS
from qdqpatch.errors import CheckpointError, ExportError
from qdqpatch.lint import LintReport, check_file, check_sites
from qdqpatch.lint.rules import RULES

Lint = Callable[..., LintReport]

GOOD = {
    "tensorrt": Style(),
    "openvino": Style(),
    "onnxruntime": Style(dtype="uint8", second="int8", matmul="MatMulIntegerToFloat", add="Sum"),
}
QKV = tuple(f"encoder.layer.0.attention.self.{name}" for name in ("query", "key", "value"))
SELF, OUTPUT = "encoder.layer.0.attention.self", "encoder.layer.0.attention.output"
LINEARS = (
    *QKV,
    f"{OUTPUT}.dense",
    "encoder.layer.0.intermediate.dense",
    "encoder.layer.0.output.dense",
)
ADDS = (OUTPUT, "encoder.layer.0.output")

# target, rule, what is changed of a good graph, and the modules that break it
BROKEN = [
    ("tensorrt", "unknown-operator", {"matmul": "MatMulIntegerToFloat"}, (SELF, SELF)),
    ("tensorrt", "unknown-operator", {"add": "SkipLayerNormalization"}, ADDS),
    ("tensorrt", "operand-type", {"dtype": "uint8", "zero": 0}, (*LINEARS, SELF, SELF, *ADDS)),
    ("tensorrt", "operand-type", {"second": "uint8", "zero": 0}, (SELF, SELF)),
    ("tensorrt", "operand-type", {"dtype": "uint16", "zero": 0}, (*LINEARS, SELF, SELF, *ADDS)),
    ("tensorrt", "operand-type", {"dtype": "float8e5m2"}, (*LINEARS, SELF, SELF, *ADDS)),
    ("tensorrt", "operand-type", {"weight_dtype": "uint8"}, LINEARS),
    ("tensorrt", "operand-type", {"dtype": "float8e4m3fn"}, LINEARS),
    ("tensorrt", "symmetric", {"zero": 3}, (*LINEARS, SELF, SELF, *ADDS)),
    ("tensorrt", "integer-bias", {"bias": "int32"}, LINEARS),
    ("tensorrt", "not-quantized", {"floats": ("q",)}, (SELF,)),
    ("tensorrt", "not-quantized", {"floats": ("query", "query.weight")}, (QKV[0],)),
    ("tensorrt", "residual", {"floats": (f"{OUTPUT}.residual",)}, (OUTPUT,)),
    ("tensorrt", "residual", {"floats": (f"{OUTPUT}.local", f"{OUTPUT}.residual")}, (OUTPUT,)),
    ("tensorrt", "weight-axis", {"by_input": True}, LINEARS),
    ("tensorrt", "dq-feeds-matmul", {"late_views": "after DQ"}, (SELF, SELF)),
    ("tensorrt", "scale-after-matmul", {"scale": "after"}, (SELF,)),
    ("tensorrt", "float-between", {"extra": ("scores",)}, (SELF,)),
    ("onnxruntime", "operand-type", {"weight_dtype": "int4"}, LINEARS),
    ("onnxruntime", "half-precision", {"half": True}, LINEARS),
    ("onnxruntime", "not-quantized", {"floats": ("key",)}, (QKV[1],)),
    ("onnxruntime", "not-quantized", {"floats": ("value.weight",)}, (QKV[2],)),
    ("onnxruntime", "signed-kernel", {"dtype": "int8", "split": True, "differ": True}, (SELF, SELF)),
    ("onnxruntime", "unsigned-key-value", {"second": "uint8"}, (SELF, SELF)),
    ("onnxruntime", "quantized-output", {"matmul": "MatMul", "late_views": "between"}, (SELF,)),
    ("onnxruntime", "float-weight", {"weights": "float"}, LINEARS),
    ("onnxruntime", "transposed-weight", {"axis": 0}, LINEARS),
    ("onnxruntime", "skip-layer-norm", {"add": "Add"}, ADDS),
    ("onnxruntime", "skip-layer-norm", {"add": "SkipLayerNormalization"}, ADDS),
    ("onnxruntime", "fused-matmul", {"linear": "FusedMatMul"}, LINEARS),
    ("openvino", "operand-type", {"dtype": "uint16", "zero": 0}, (*LINEARS, SELF, SELF)),
    ("openvino", "operand-type", {"weight_dtype": "int4"}, LINEARS),
    ("openvino", "operand-type", {"weight_dtype": "uint8"}, LINEARS),
    ("openvino", "shifted-weight", {"weight_zero": 3}, LINEARS),
    ("openvino", "not-quantized", {"floats": ("v",)}, (SELF,)),
    ("openvino", "shifted-attention", {"dtype": "uint8"}, (SELF, SELF)),
    ("openvino", "shifted-attention", {"second": "uint8"}, (SELF, SELF)),
    ("openvino", "integer-operator", {"linear": "MatMulInteger"}, LINEARS),
]


@pytest.fixture
def lint(tmp_path: Path) -> Lint:
    """Check a graph of a style, or of a target's good style with changes."""

    def lint(target: str, style: Style | None = None, layers: int = 1, head: str | None = None, **changes):
        style = dataclasses.replace(style or GOOD[target], **changes)
        return check_file(write_encoder(tmp_path / "model.onnx", style, layers, head), target)

    return lint


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layers", [1, 2])
def test_a_good_graph_breaks_no_rule(lint, target: str, layers: int) -> None:
    report = lint(target, layers=layers)
    assert [finding.detail for finding in report.findings] == []
    assert len(report.sites) == 10 * layers


@pytest.mark.parametrize(("target", "rule", "change", "paths"), BROKEN)
def test_a_broken_rule_is_found_and_no_other(
    lint, target: str, rule: str, change: dict, paths: tuple
) -> None:
    report = lint(target, **change)
    assert list(report.broken) == [rule]
    assert sorted(finding.site.path for finding in report.findings) == sorted(paths)


def test_a_file_for_processors_without_vnni_has_unsigned_keys_and_values(lint) -> None:
    sites = lint("onnxruntime", second="uint8").sites
    signed_at = [index for index, site in enumerate(sites) if site.operation == "linear"]
    assert len(signed_at) == len(LINEARS)

    def found(unsigned: list[int]) -> list[str]:
        changed = list(sites)
        for index in unsigned:
            first, weight = sites[index].operands
            weight = dataclasses.replace(weight, dtype="uint8", zero_point=128)
            changed[index] = dataclasses.replace(sites[index], operands=(first, weight))
        return list(check_sites(changed, "onnxruntime").broken)

    assert found(signed_at) == []
    assert found(signed_at[1:]) == ["unsigned-key-value"]
    first, weight = sites[signed_at[0]].operands
    small = dataclasses.replace(weight, fits_pairs=True)
    sites = [*sites]
    sites[signed_at[0]] = dataclasses.replace(sites[signed_at[0]], operands=(first, small))
    assert found(signed_at[1:]) == []


def test_openvino_takes_levels_from_0_up_on_the_left_alone(lint) -> None:
    report = lint("openvino", dtype="int8", zero=-128)
    details = {finding.detail for finding in report.broken["shifted-attention"]}
    assert details == {"zero point -128 for its key", "zero point -128 for its value"}


def test_gemm_with_a_float_bias(lint, tmp_path: Path) -> None:
    report = lint("onnxruntime", fixed=True)
    paths = [finding.site.path for finding in report.broken["float-gemm"]]
    assert paths == [QKV[0], "encoder.layer.0.intermediate.dense"]
    assert {finding.detail for finding in report.broken["float-gemm"]} == {
        "its shapes are fixed, its bias float"
    }
    model = onnx.load(tmp_path / "model.onnx")
    product = next(node for node in model.graph.node if node.op_type == "MatMul")
    add = next(node for node in model.graph.node if product.output[0] in node.input)
    product.op_type = "Gemm"
    product.input.append(add.input[1])
    add.input[1] = add.input[0]
    onnx.save(model, tmp_path / "model.onnx")
    gemm = check_file(tmp_path / "model.onnx", "onnxruntime").broken["float-gemm"][0]
    assert (gemm.site.path, gemm.detail) == (QKV[0], "it is Gemm with a float bias")


def test_every_rule_is_shown_to_break() -> None:
    elsewhere = {
        ("onnxruntime", "signed-input"),
        ("onnxruntime", "float-gemm"),
        ("openvino", "foreign-operator"),
    }
    shown = {(target, rule) for target, rule, *_ in BROKEN} | elsewhere
    assert shown == {(target, rule.name) for target, rules in RULES.items() for rule in rules}


@pytest.mark.parametrize("target", TARGETS)
def test_rules_are_documented(target: str) -> None:
    for rule in RULES[target]:
        assert rule.reason.endswith(".")
        assert rule.fix.endswith(".")
        assert rule.documents
        assert all(document.url.startswith("https://") and document.title for document in rule.documents)


def test_what_the_original_breaks_in_onnxruntime(lint) -> None:
    report = lint("onnxruntime", QDQBERT, layers=2)
    assert {name: len(found) for name, found in report.broken.items()} == {
        "signed-input": 8,
        "unsigned-key-value": 4,
        "quantized-output": 2,
        "float-weight": 12,
        "transposed-weight": 12,
        "skip-layer-norm": 4,
    }
    shared = [finding for finding in report.broken["signed-input"] if ".0." in finding.site.path]
    assert [(finding.site.path, finding.detail) for finding in shared] == [
        *((path, "its input is int8, and 4 operations read it") for path in QKV),
        ("encoder.layer.0.intermediate.dense", "its input is int8, and 2 operations read it"),
    ]
    assert list(lint("tensorrt", QDQBERT).broken) == ["scale-after-matmul"]
    assert lint("openvino", QDQBERT).findings == ()


ON_X64 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the rules are of x64")
STYLES = [
    (QDQBERT, 4),
    (Style(), 4),
    (Style(late_views="between"), 5),
    (Style(late_views="after DQ"), 4),
    (Style(split=True), 4),
    (Style(split=True, differ=True), 0),
    (Style(dtype="uint8"), 0),
    (Style(dtype="uint8", second="int8"), 0),
    (Style(dtype="uint8", second="int8", late_views="between"), 0),
    (Style(dtype="uint8", floats=("q", "query")), 2),
]


@ON_X64
@pytest.mark.parametrize(("style", "float_count"), STYLES)
def test_onnxruntime_leaves_float_what_lint_says(
    lint, tmp_path: Path, style: Style, float_count: int
) -> None:
    report = lint("onnxruntime", dataclasses.replace(style, names="nodes"))
    said = {finding.site.path for finding in report.findings if finding.rule.effect == "stays float"}
    nodes = optimized(tmp_path / "model.onnx").node
    left = [node.name for node in nodes if node.op_type in ("MatMul", "FusedMatMul", "Gemm")]
    assert len(left) == len(said) == float_count
    for name in left:
        if name.startswith("/"):  # a node that was fused has another name
            assert ".".join(name.strip("/").split("/")[:-1]) in said


@ON_X64
@pytest.mark.parametrize("style", [style for style, _ in STYLES])
def test_onnxruntime_takes_the_slower_kernels_that_lint_says(lint, tmp_path: Path, style: Style) -> None:
    broken = lint("onnxruntime", style).broken
    graph = optimized(tmp_path / "model.onnx")
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    unsigned = onnx.TensorProto.UINT8
    found = Counter()
    for node in graph.node:
        if node.op_type == "QLinearMatMul":
            found["quantized-output"] += 1
            found["unsigned-key-value"] += types[node.input[5]] == unsigned
        elif node.op_type == "MatMulIntegerToFloat":
            found["unsigned-key-value"] += node.input[1] not in types and types[node.input[5]] == unsigned
    for rule in ("quantized-output", "unsigned-key-value"):
        assert len(broken.get(rule, ())) == found[rule]


def test_names_come_from_nodes_weights_or_numbers(lint) -> None:
    paths = {
        names: [site.path for site in lint("tensorrt", names=names, layers=2).sites]
        for names in ("nodes", "weights", "none")
    }
    assert paths["nodes"] == paths["weights"]
    assert paths["weights"][:5] == [*QKV, SELF, SELF]
    assert paths["none"][:6] == [*(f"linear.{n}" for n in range(3)), "attention.0", "attention.0", "linear.3"]
    assert paths["none"][-1] == "residual.3"


def test_names_come_from_the_metadata_of_the_newer_exporter(lint, tmp_path: Path) -> None:
    file = write_encoder(tmp_path / "model.onnx", Style(names="none"))
    model = onnx.load(file)
    for node in model.graph.node:
        if node.op_type == "Add":
            scopes = "['', 'encoder', 'encoder.layer.0', 'encoder.layer.0.output', 'add']"
            helper.set_metadata_props(node, {"pkg.torch.onnx.name_scopes": scopes})
    onnx.save(model, file)
    adds = [site.path for site in check_file(file, "tensorrt").sites if site.operation == "residual add"]
    assert adds == ["encoder.layer.0.output"] * 2


def test_a_float_head_is_left_out(lint) -> None:
    assert len(lint("tensorrt", head="float").sites) == 10
    report = lint("tensorrt", head="quantized", zero=3)
    assert [site.path for site in report.sites][-1] == "head"
    assert [finding.rule.name for finding in report.of(report.sites[-1])] == ["symmetric"]


def test_other_operators_of_a_foreign_domain_are_named(lint, tmp_path: Path) -> None:
    file = write_encoder(tmp_path / "model.onnx", Style())
    model = onnx.load(file)
    for node in model.graph.node:
        if node.op_type == "Gelu":
            node.op_type, node.domain = "QuickGelu", "com.microsoft"
        if node.op_type == "Gather":
            node.op_type, node.domain = "GatherOfMine", "mine"
    onnx.save(model, file)
    (table, gelu) = check_file(file, "tensorrt").findings
    assert (gelu.site.path, gelu.site.operation) == ("QuickGelu.0", "operator")
    assert gelu.detail == "com.microsoft.QuickGelu is not an operator of ONNX"
    assert (table.site.path, table.detail) == (
        "GatherOfMine.0",
        "mine.GatherOfMine is not an operator of ONNX",
    )
    (table,) = check_file(file, "openvino").findings  # which knows some of ONNX Runtime's own
    assert table.detail == "mine.GatherOfMine is not an operator that it reads"
    assert "QuickGelu.0" in [site.path for site in check_file(file, "onnxruntime").sites]


def test_quantizers_that_tensorrt_fuses_break_no_rule(lint) -> None:
    assert lint("tensorrt", extra=("gelu", "norm")).findings == ()


def test_weights_may_be_missing(tmp_path: Path) -> None:
    file = write_encoder(tmp_path / "model.onnx", Style(dtype="uint8"))
    model = onnx.load(file)
    onnx.save(model, file, save_as_external_data=True, location="model.data", size_threshold=0)
    with_data = check_file(file, "tensorrt")
    (tmp_path / "model.data").unlink()
    without = check_file(file, "tensorrt")
    details = {finding.detail for finding in with_data.findings} - {
        finding.detail for finding in without.findings
    }
    assert all(detail.startswith("zero point 128") for detail in details)  # which was in the other file
    assert len(without.broken["operand-type"]) == len(with_data.broken["operand-type"]) == 10


def test_functions_are_looked_into(tmp_path: Path) -> None:
    file = write_encoder(tmp_path / "model.onnx", Style())
    model = onnx.load(file)
    inner = helper.make_node("Gelu", ["x"], ["y"])
    opsets = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("local", "Activation", ["x"], ["y"], [inner], opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))
    for node in model.graph.node:
        if node.op_type == "Gelu":
            node.op_type, node.domain = "Activation", "local"
    onnx.save(model, file)
    report = check_file(file, "tensorrt")
    assert report.findings == ()
    assert len(report.sites) == 10


def test_what_cannot_be_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "empty.onnx").touch()
    relu = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [])
    onnx.save(helper.make_model(relu), tmp_path / "relu.onnx")
    for name, message in (
        ("missing.onnx", "does not exist"),
        ("text.onnx", "cannot be read as an ONNX model"),
        ("empty.onnx", "has no encoder"),
        ("relu.onnx", "has no encoder"),
        (".", "is a folder; name the file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            check_file(tmp_path / name, "tensorrt")
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(ExportError, match="pip install onnx-ir"):
        check_file(tmp_path / "relu.onnx", "tensorrt")
