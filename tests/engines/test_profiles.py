"""What TensorRT compiles a file with dynamic axes for: as long as the model's positions go, and no longer."""

import importlib
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import onnx
import pytest
from commands import invoke
from encoders import Style, write_encoder

from qdqpatch.engines import gpu
from qdqpatch.engines.homes import longest_of
from qdqpatch.engines.profiles import profile_of, profiles_for
from qdqpatch.engines.shapes import Shape
from qdqpatch.engines.tensorrt import build
from qdqpatch.errors import EngineError

GRAPH = (
    "agraph (int64[b, s] ids, float[b, 3] x) => (int64[b, s] y, float[b, 3] z) "
    "{ y = Add(ids, ids) z = Add(x, x) }"
)


def test_no_profile_is_longer_than_the_model() -> None:
    (short,) = profiles_for(77)
    assert [str(shape) for shape in (short.smallest, short.usual, short.largest)] == ["1x1", "8x77", "32x77"]
    (unknown,) = profiles_for(None)
    assert str(unknown.largest) == "32x512"
    assert profiles_for(512) == (unknown,)


def test_the_longest_sequence_of_a_long_model_is_in_a_profile_of_few() -> None:
    usual, long = profiles = profiles_for(8192)
    assert str(usual.largest) == "32x512"
    assert [str(shape) for shape in (long.smallest, long.usual, long.largest)] == ["1x1", "1x8192", "2x8192"]
    assert long.largest.tokens <= usual.largest.tokens
    assert str(profiles_for(100_000)[1].largest) == "1x100000"
    assert [profile_of(profiles, Shape.parse(text)) for text in ("32x512", "2x513", "1x8192")] == [0, 1, 1]
    with pytest.raises(EngineError, match=r"^3x513 is more than .* compiled for, at most 32x512 or 2x8192$"):
        profile_of(profiles, Shape(3, 513))


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({"max_position_embeddings": 77}, 77),
        ({"model_type": "clip", "text_config": {"max_position_embeddings": 77}}, 77),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"max_position_embeddings": -1}, None),
        ({"hidden_size": 8}, None),
        ([], None),
    ],
)
def test_the_config_above_a_file_says_how_long(tmp_path: Path, config: object, longest: int | None) -> None:
    (tmp_path / "onnx").mkdir()
    assert longest_of(tmp_path / "onnx" / "model.onnx") is None
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert longest_of(tmp_path / "onnx" / "model.onnx") == longest


def test_lint_compiles_no_longer_than_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_encoder(tmp_path / "model.onnx", Style())
    asked: list[Shape] = []

    def note(file: Path, capabilities: object, shape: Shape, say: object) -> list[build.Build]:
        asked.append(shape)
        raise EngineError("That is enough.")

    monkeypatch.setattr(build, "build_all", note)
    arguments = ("lint", file, "--target", "tensorrt", "--build", "--capability", "SM89")
    invoke(*arguments)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 16}', encoding="utf-8")
    invoke(*arguments)
    invoke(*arguments, "--shape", "2x32")
    assert asked == [Shape(32, 128), Shape(32, 16), Shape(2, 32)]


def test_a_file_is_compiled_as_long_as_the_config_beside_it_says(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 77}', encoding="utf-8")
    trt = MagicMock()
    builder = trt.Builder.return_value
    shape = builder.create_optimization_profile.return_value.set_shape
    network = builder.create_network.return_value
    network.num_inputs, network.get_input.return_value = 1, SimpleNamespace(name="ids", shape=(-1, -1))
    builder.build_serialized_network.return_value = None
    with pytest.raises(EngineError, match="could not compile"):
        gpu.GPU_ENGINES["tensorrt"]._open(trt, tmp_path / "model.onnx", None, False)
    shape.assert_called_once_with("ids", (1, 1), (8, 77), (32, 77))


@pytest.mark.skipif(importlib.util.find_spec(build.PACKAGE) is None, reason="TensorRT for RTX is missing")
def test_tensorrt_takes_the_profiles() -> None:
    trt = importlib.import_module(build.PACKAGE)
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {GRAPH}')
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, logger).parse(model.SerializeToString())
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    config, made = builder.create_builder_config(), []
    for shapes in profiles_for(8192):
        made.append(builder.create_optimization_profile())
        gpu.add_profile(config, made[-1], inputs, shapes)
    assert config.num_optimization_profiles == 2
    assert [tuple(shape) for shape in made[0].get_shape("ids")] == [(1, 1), (8, 128), (32, 512)]
    assert [tuple(shape) for shape in made[1].get_shape("ids")] == [(1, 1), (1, 8192), (2, 8192)]
    assert [tuple(shape) for shape in made[1].get_shape("x")] == [(1, 3), (1, 3), (2, 3)]
    feed = {"ids": np.zeros((2, 513), np.int64), "x": np.zeros((2, 3), np.float32)}
    assert gpu.shape_of(inputs, feed) == Shape(2, 513)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    assert builder.build_serialized_network(network, config) is not None
