"""What is found to run of the models that a user names."""

import json
import sys
from pathlib import Path

import pytest
from exported import write_onnx

from qdqpatch.engines.contenders import Facts
from qdqpatch.engines.homes import home_of
from qdqpatch.engines.models import find_contenders
from qdqpatch.errors import CheckpointError, ConfigError, EngineError


def test_a_file_runs_in_every_engine_that_loads_it(here: Path) -> None:
    write_onnx(here / "a.onnx")
    (here / "b.xml").touch()
    found = find_contenders(["a.onnx", "b.xml"])
    assert [(contender.model, contender.engine, contender.path) for contender in found] == [
        ("a.onnx", "onnxruntime", "a.onnx"),
        ("a.onnx", "openvino", "a.onnx"),
        ("b.xml", "openvino", "b.xml"),
    ]
    only = find_contenders(["a.onnx", "b.xml"], ["openvino"])
    assert [contender.engine for contender in only] == ["openvino", "openvino"]
    assert {contender.facts for contender in found} == {Facts()}


def test_a_folder_runs_in_what_its_files_are_for(here: Path) -> None:
    for folder, files in {
        "sharded": ["model.safetensors.index.json"],
        "ort": ["model.onnx"],
        "ov": ["openvino_model.xml"],
        "all": ["pytorch_model.bin", "onnx/model.onnx", "openvino/openvino_model.xml"],
        "small": ["onnx/model_quantized.onnx"],
    }.items():
        for file in files:
            Path(folder, file).parent.mkdir(parents=True, exist_ok=True)
            Path(folder, file).touch()
    found = find_contenders(["sharded", "ort", "ov", "all", "small"])
    assert [(contender.model, contender.engine, contender.path) for contender in found] == [
        ("sharded", "torch", "sharded"),
        ("ort", "onnxruntime", "ort/model.onnx"),
        ("ort", "openvino", "ort/model.onnx"),
        ("ov", "openvino", "ov/openvino_model.xml"),
        ("all", "torch", "all"),
        ("all", "onnxruntime", "all/onnx/model.onnx"),
        ("all", "openvino", "all/openvino/openvino_model.xml"),
        ("small", "onnxruntime", "small/onnx/model_quantized.onnx"),
        ("small", "openvino", "small/onnx/model_quantized.onnx"),
    ]


def test_the_config_of_a_part_of_a_folder_is_the_folders(here: Path) -> None:
    Path("out/onnx").mkdir(parents=True)
    write_onnx(here / "out/onnx/model.onnx")
    Path("out/config.json").write_text('{"vocab_size": 48}')
    for name in ("out", "out/onnx", "out/onnx/model.onnx"):
        assert find_contenders([name], ["onnxruntime"])[0].facts == Facts(48)
    assert home_of(Path("out/onnx/model.onnx")) == Path("out")
    assert home_of(Path("out/onnx").resolve()) == Path("out").resolve()
    Path("out/onnx/config.json").write_text('{"vocab_size": 4}')
    assert find_contenders(["out/onnx"], ["onnxruntime"])[0].facts == Facts(4)


def test_the_config_beside_a_model_is_read(here: Path) -> None:
    write_onnx(here / "a.onnx")
    data = {"vocab_size": 48, "max_position_embeddings": 32, "pad_token_id": None, "model_type": "bert"}
    Path("config.json").write_text(json.dumps(data))
    assert find_contenders(["a.onnx"], ["onnxruntime"])[0].facts == Facts(48, 32, None)
    for broken in ("{", "[]"):
        Path("config.json").write_text(broken)
        with pytest.raises(CheckpointError, match=r"Cannot read config\.json"):
            find_contenders(["a.onnx"])


def test_labels_are_the_ends_that_tell_models_apart(here: Path) -> None:
    for folder in ("x/float", "y/float", "y/int8"):
        Path(folder).mkdir(parents=True)
        Path(folder, "model.onnx").touch()
    names = ["x/float", str(here / "y/float"), "y/int8", "x/float"]
    labels = [contender.model for contender in find_contenders(names, ["onnxruntime"])]
    assert labels == ["x/float", "y/float", "int8", "x/float (2)"]


def test_what_cannot_be_run_is_refused(here: Path) -> None:
    Path("empty").mkdir()
    Path("other").mkdir()
    Path("other/model_int8.onnx").touch()
    Path("weights.bin").touch()
    Path("model.onnx").touch()
    for name, message in {
        "missing.onnx": "There is no file missing.onnx",
        "a/b/missing": "There is no folder a/b/missing",
        "missing": "There is no folder missing here, and no model of that name on the hub",
        "weights.bin": "weights.bin is neither a folder nor an .onnx or .xml file",
        "empty": "nothing to run in empty: none of model.safetensors, pytorch_model.bin, "
        "onnx/model.onnx, openvino/openvino_model.xml.$",
        "other": "To run model_int8.onnx, name the file",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            find_contenders([name])
    with pytest.raises(ConfigError, match=r"^model\.onnx runs in onnxruntime and openvino, not in torch"):
        find_contenders(["model.onnx"], ["torch"])
    with pytest.raises(ConfigError, match="torch can run none of these models; leave out 'torch'"):
        find_contenders(["model.onnx"], ["openvino", "torch"])


def test_an_engine_that_is_not_installed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.onnx").touch()
    Path("b.xml").touch()
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert [contender.engine for contender in find_contenders(["a.onnx"])] == ["onnxruntime"]
    with pytest.raises(
        EngineError, match=r"^Running models in openvino needs openvino: pip install openvino$"
    ):
        find_contenders(["a.onnx"], ["openvino"])
    with pytest.raises(EngineError, match=r"Nothing that runs b\.xml is installed: pip install openvino"):
        find_contenders(["b.xml"])
