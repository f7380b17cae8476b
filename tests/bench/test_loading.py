"""The models of a benchmark, loaded and run."""

from pathlib import Path
from typing import Any

import models
import pytest
import torch
from benches import file_contender
from exported import write_onnx
from onnx import TensorProto

from qdqpatch.bench.checkpoints import SIMULATED
from qdqpatch.bench.inputs import make_inputs
from qdqpatch.bench.loading import load
from qdqpatch.engines.contenders import Facts
from qdqpatch.engines.models import find_contenders
from qdqpatch.engines.shapes import Shape
from qdqpatch.engines.threads import torch_threads
from qdqpatch.errors import ConfigError, EngineError


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_file_is_run(here: Path, engine: str) -> None:
    loaded = load(file_contender(write_onnx(here / "a.onnx"), engine), 1)
    found: Any = loaded.runner(Shape(2, 8))()
    assert found["logits"].shape == (2, 16)
    assert loaded.takes == "?x?"
    assert loaded.fits(Shape(3, 5))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_what_a_graph_is_made_for(here: Path, engine: str) -> None:
    static = load(file_contender(write_onnx(here / "a.onnx", (1, 8)), engine), 1)
    assert static.takes == "1x8"
    assert static.fits(Shape(1, 8))
    assert not static.fits(Shape(2, 8))
    half = load(file_contender(write_onnx(here / "b.onnx", ("batch", 8)), engine), 1)
    assert half.takes == "?x8"
    assert half.fits(Shape(2, 8))
    assert not half.fits(Shape(2, 9))
    half.runner(Shape(2, 8))()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_ids_of_another_type(here: Path, engine: str) -> None:
    path = write_onnx(here / "a.onnx", ids_type=TensorProto.INT32)
    loaded = load(file_contender(path, engine), 1)
    assert {value.name: value.dtype for value in loaded.inputs} == {
        "input_ids": "int32",
        "attention_mask": "int64",
    }
    loaded.runner(Shape(1, 4))()


def test_a_failing_run_names_the_contender_in_one_line(here: Path) -> None:
    small = load(file_contender(write_onnx(here / "a.onnx"), facts=Facts()), 1)
    with pytest.raises(EngineError, match=r"^a\.onnx in onnxruntime, 4x64: .*config\.json") as caught:
        small.runner(Shape(4, 64))()  # ids up to 1000, and 48 embeddings
    assert "\n" not in str(caught.value)


def test_a_file_that_an_engine_refuses(here: Path) -> None:
    (here / "a.onnx").write_bytes(b"nonsense")
    for engine in ("onnxruntime", "openvino"):
        with pytest.raises(EngineError, match=rf"^{engine} cannot load .*a\.onnx") as caught:
            load(file_contender(here / "a.onnx", engine), 1)
        assert "\n" not in str(caught.value)


def test_checkpoints_run_in_torch_as_they_are(here: Path) -> None:
    models.float_model().save_pretrained("float")
    models.calibrated().save_pretrained("int8")
    for name, note in {"float": None, "int8": SIMULATED}.items():
        (contender,) = find_contenders([name])
        loaded = load(contender, 1)
        assert [value.name for value in loaded.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
        assert loaded.note == note
        found: Any = loaded.runner(Shape(2, 8))()
        model = {"float": models.float_model, "int8": models.calibrated}[name]()
        tensors = make_inputs(loaded.inputs, Shape(2, 8), contender.facts)
        with torch.no_grad():
            expected = model(**{key: torch.from_numpy(value) for key, value in tensors.items()})
        assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
        assert found.last_hidden_state.is_inference()


def test_multiple_choice_is_refused(here: Path) -> None:
    models.build("BertForMultipleChoice").save_pretrained("choices")
    with pytest.raises(ConfigError, match="choices in torch takes \\(batch, choices, length\\)"):
        load(find_contenders(["choices"])[0], 1)


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()

    @torch_threads(before + 1)
    def fail() -> None:
        raise RuntimeError(f"with {torch.get_num_threads()}")

    with pytest.raises(RuntimeError, match=f"^with {before + 1}$"):
        fail()
    assert torch.get_num_threads() == before
