"""Files and their other names; the configuration of Triton Inference Server, read by protobuf itself."""

import os
from pathlib import Path
from typing import Any

import exported
import onnx_ir as ir
import pytest
from commands import invoke
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from onnx import parser

from qdqpatch.errors import ExportError
from qdqpatch.exporter.layout import link_quantized
from qdqpatch.exporter.targets.base import write_onnx
from qdqpatch.exporter.triton import TYPES, config_text, write_triton

FIELDS = {
    "ModelConfig": {
        "platform": (2, "string"),
        "max_batch_size": (4, "int32"),
        "input": (5, "Tensor*"),
        "output": (6, "Tensor*"),
        "instance_group": (7, "Group*"),
        "dynamic_batching": (11, "Batching"),
    },
    "Tensor": {"name": (1, "string"), "data_type": (2, "DataType"), "dims": (4, "int64*")},
    "Group": {"count": (2, "int32"), "kind": (4, "Kind")},
    "Batching": {},
}
"""What is written of model_config.proto of triton-inference-server/common, under names of our own."""

ENUMS = {
    "DataType": {"TYPE_INT32": 8, "TYPE_INT64": 9, "TYPE_FP16": 10, "TYPE_FP32": 11, "TYPE_BF16": 14},
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2},
}


@pytest.fixture(scope="module")
def model_config() -> Any:
    """Return the class of the message, made of the tables above."""
    file = descriptor_pb2.FileDescriptorProto(name="subset.proto", package="subset", syntax="proto2")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, numbers in ENUMS.items():
        file.enum_type.add(name=name).value.extend(
            descriptor_pb2.EnumValueDescriptorProto(name=value, number=number)
            for value, number in numbers.items()
        )
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            added = message.field.add(name=field, number=number)
            added.label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
            kind = kind.removesuffix("*")
            if kind in FIELDS or kind in ENUMS:
                added.type = kinds.TYPE_MESSAGE if kind in FIELDS else kinds.TYPE_ENUM
                added.type_name = f".subset.{kind}"
            else:
                added.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("subset.ModelConfig"))


def graph(signature: str) -> ir.Graph:
    text = f'<ir_version: 9, opset_import: ["" : 20]> g {signature} {{ b = Cast <to = 1> (a) }}'
    return ir.from_proto(parser.parse_model(text)).graph


def test_a_graph_of_any_batch_is_batched(model_config: Any) -> None:
    found = text_format.Parse(
        config_text(graph("(int64[batch, length] a, int32[batch, 3, 8] i) => (float[batch, length, 24] b)")),
        model_config(),
    )
    assert (found.platform, found.max_batch_size) == ("onnxruntime_onnx", 64)
    assert [(one.name, one.data_type, list(one.dims)) for one in (*found.input, *found.output)] == [
        ("a", ENUMS["DataType"]["TYPE_INT64"], [-1]),
        ("i", ENUMS["DataType"]["TYPE_INT32"], [3, 8]),
        ("b", ENUMS["DataType"]["TYPE_FP32"], [-1, 24]),
    ]
    assert found.HasField("dynamic_batching")
    assert [(group.count, group.kind) for group in found.instance_group] == [(1, ENUMS["Kind"]["KIND_CPU"])]


def test_a_graph_of_one_shape_is_not(model_config: Any) -> None:
    text = config_text(graph("(int64[2, 8] a) => (float[2, 8] b)"))
    found = text_format.Parse(text, model_config())
    assert found.max_batch_size == 0
    assert [list(one.dims) for one in (*found.input, *found.output)] == [[2, 8]] * 2
    assert not found.HasField("dynamic_batching")


def test_every_type_has_a_name_of_tritons() -> None:
    assert set(TYPES.values()) == ENUMS["DataType"].keys()


def test_what_the_file_does_not_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="shape of b, which the file does not say"):
        config_text(graph("(int64[batch] a) => (float b)"))
    with pytest.raises(ExportError, match="a is of type BOOL"):
        config_text(graph("(bool[batch, length] a) => (float[batch, length] b)"))
    for command in (["export", "x", "y", "--target", "openvino"], ["convert", "x", "y"]):
        result = invoke(*command, "--triton")
        assert result.exit_code == 2, result.output
        assert "--triton needs" in result.output


def test_a_file_system_without_links_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_text("a file")
    link_quantized(tmp_path / "model.onnx")
    assert (tmp_path / "model_quantized.onnx").samefile(tmp_path / "model.onnx")
    (tmp_path / "model_quantized.onnx").unlink()

    def refuse(*names: Path) -> None:
        raise OSError

    monkeypatch.setattr(os, "link", refuse)
    link_quantized(tmp_path / "model.onnx")
    assert (tmp_path / "model_quantized.onnx").read_text() == "a file"
    assert not (tmp_path / "model_quantized.onnx").samefile(tmp_path / "model.onnx")


def test_weights_beside_the_file_are_linked_too(tmp_path: Path) -> None:
    """Above a limit they are beside it, and a second file in another folder needs them there."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = ir.load(exported.write_onnx(tmp_path / "tiny.onnx"))
    file = tmp_path / "out/onnx/model.onnx"
    write_onnx(model, file, largest=1000)
    assert file.with_name("model.onnx_data").stat().st_size >= 4 * exported.VOCABULARY * exported.WIDTH
    write_triton(model.graph, file, tmp_path / "out")
    for path in (file, tmp_path / "out/1/model.onnx"):
        assert path.stat().st_size < 1000
        onnxruntime.InferenceSession(path)
    write_onnx(model, file, largest=10_000)
    assert file.stat().st_size > 1000
