"""Our module in sentence-transformers: its options, and one clear line for what cannot be."""

import copy
import dataclasses
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import exported
import pytest
import torch
from sentence_folders import write, write_embedder

from qdqpatch.checkpoint.files import find_file
from qdqpatch.checkpoint.weight_files import WEIGHTS
from qdqpatch.engines import models
from qdqpatch.engines.sessions import ENGINES, Session
from qdqpatch.errors import CheckpointError, DataError, EngineError, QdqError
from qdqpatch.exporter.layout import MODULE

library = pytest.importorskip("sentence_transformers")
pytest.importorskip("onnxruntime")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose file for ONNX Runtime is no encoder, but is loaded and run as one."""
    folder = write_embedder(tmp_path / "out", prompts={"query": "a "})
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = MODULE
    write(folder / "modules.json", modules)
    (folder / "onnx").mkdir()
    exported.write_onnx(folder / "onnx/model.onnx")
    return folder


def load(folder: Path, **options: Any) -> Any:
    return library.SentenceTransformer(str(folder), device="cpu", trust_remote_code=True, **options)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The files that ONNX Runtime loads, and the threads for each; "exact" where that is asked for."""
    engine, calls = ENGINES["onnxruntime"], []

    def spy(module: Any, path: Path, threads: int | None, exact: bool) -> Session:
        calls.append((path.name, threads, *(["exact"] if exact else [])))
        return engine._open(module, path, threads, exact)

    monkeypatch.setitem(ENGINES, "onnxruntime", dataclasses.replace(engine, _open=spy))
    return calls


def test_a_file_is_loaded_once_with_the_threads_asked_for(folder: Path, opened: list[Any]) -> None:
    model = load(folder, model_kwargs={"threads": 1})[0].model
    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    first = model(ids, ids.clamp(max=1))["logits"]
    assert torch.equal(model(ids, ids.clamp(max=1))["logits"], first)
    assert not torch.equal(model(ids)["logits"], first)  # a mask that is not given hides nothing
    assert opened == [("model.onnx", 1)]
    assert torch.equal(copy.deepcopy(model)(ids, ids.clamp(max=1))["logits"], first)
    assert opened == [("model.onnx", 1)] * 2
    assert model.device == torch.device("cpu")
    assert model.to("meta").device == torch.device("meta")


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("in_file", [True, False])
def test_slower_kernels_are_for_files_that_saturate_here(
    here: bool, in_file: bool, folder: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qdqpatch.engines.sentence_transformers.saturates", lambda: here)
    monkeypatch.setattr("qdqpatch.engines.sentence_transformers.may_saturate", lambda file: in_file)
    load(folder)
    assert opened == [("model.onnx", None, *(["exact"] if here and in_file else []))]


def test_files_are_of_the_revision_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def spy(source: str, name: str, **hub: Any) -> str | None:
        asked.append(hub)
        return find_file(source, name, **hub)

    monkeypatch.setattr("qdqpatch.engines.sentence_transformers.find_file", spy)
    load(folder, revision="v2", local_files_only=True)
    assert asked
    assert all((hub["revision"], hub["local_files_only"]) == ("v2", True) for hub in asked)


@pytest.mark.parametrize("name", ["other.onnx", "onnx/other.onnx"])
def test_another_file_can_be_named(name: str, folder: Path, opened: list[Any]) -> None:
    exported.write_onnx(folder / "onnx/other.onnx")
    load(folder, model_kwargs={"file_name": name})
    assert opened == [("other.onnx", None)]


@pytest.mark.parametrize("name", ["onnx/model.onnx", "other.onnx"])
def test_what_runs_is_saved_and_loads_again(
    name: str, folder: Path, tmp_path: Path, opened: list[Any]
) -> None:
    exported.write_onnx(folder / name)
    (folder / f"{name}_data").write_bytes(b"weights of a large one")
    chosen = {"model_kwargs": {"file_name": name}}
    model = load(folder, **chosen)
    model.save_pretrained(str(tmp_path / "saved"))
    model.save_pretrained(str(folder))  # where it is from
    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    for place in (folder, tmp_path / "saved"):
        again = load(place, **chosen)
        assert torch.equal(again[0].model(ids)["logits"], model[0].model(ids)["logits"])
        assert again.prompts == model.prompts
        assert [type(module) for module in again] == [type(module) for module in model]
    assert opened == [(Path(name).name, None)] * 3
    assert (tmp_path / "saved" / f"{name}_data").is_file()
    assert not (tmp_path / "saved" / WEIGHTS[0]).exists()


def refused(folder: Path, error: type[QdqError], pattern: str, **options: Any) -> None:
    with pytest.raises(error, match=pattern) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(folder, CheckpointError, r"has no odd\.onnx for onnxruntime\. Write one: qdqpatch export",
            backend="onnx", model_kwargs={"file_name": "odd.onnx"})  # fmt: skip
    refused(folder, CheckpointError, r"has no odd\.ort that one of the engines runs",
            model_kwargs={"file_name": "odd.ort"})  # fmt: skip
    absent = dataclasses.replace(ENGINES["onnxruntime"], package="no_such_engine")
    monkeypatch.setitem(ENGINES, "onnxruntime", absent)
    refused(
        folder, EngineError, "onnxruntime needs no_such_engine: pip install no_such_engine", backend="onnx"
    )
    (folder / WEIGHTS[0]).unlink()
    refused(folder, EngineError, "Nothing that runs .* is installed: pip install no_such_engine$")


def test_an_older_sentence_transformers_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers.base.modules", None)
    with pytest.raises(ImportError, match="needs sentence-transformers 6 or newer: pip install -U"):
        runpy.run_path(str(Path(models.__file__).with_name("sentence_transformers.py")))


def test_modules_and_prompts_that_are_not_there_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"Prompt name 'q' not found .* with keys .*'query'"):
        load(folder).encode("a cat", prompt_name="q")
    settings = {"prompts": {"query": "a "}, "default_prompt_name": "q"}
    write(folder / "config_sentence_transformers.json", settings)
    refused(folder, CheckpointError, "is 'q', which is none of its prompts: query")
    (folder / "1_Pooling/config.json").unlink()
    refused(folder, CheckpointError, r"names 1_Pooling \(Pooling\), which has no config.json")


def test_one_shape_is_refused(folder: Path) -> None:
    exported.write_onnx(folder / "onnx/model.onnx", (1, 8))
    refused(folder, CheckpointError, "takes one shape alone, .*: export it without shape")


def test_texts_longer_than_the_model_takes(folder: Path) -> None:
    """They are cut, but where the folder says to cut later than the model's positions end."""
    model = load(folder)
    assert len(model.tokenizer("the cat " * 50, truncation=True)["input_ids"]) == 12
    write(folder / "sentence_bert_config.json", {"max_seq_length": 100})
    model = load(folder)
    features = model.preprocess(["the cat " * 50])
    with pytest.raises(DataError, match=r"has 100 tokens, and the model takes 32\. Set max_seq_length"):
        model[0](features)
