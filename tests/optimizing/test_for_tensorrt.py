"""`optimize` for TensorRT: one range for what reads a tensor, and nothing timed."""

from pathlib import Path
from typing import Any

import models
import pytest
import tiny_tasks
from commands import invoke
from sentence_folders import write_embedder
from tiny_tasks import distinct_texts
from transformers import AutoModel

import qdqpatch
from qdqpatch.calibration.shared_inputs import readers
from qdqpatch.errors import ConfigError
from qdqpatch.exporter.result import Export
from qdqpatch.optimizing import ladder
from qdqpatch.optimizing.budget import Judged
from qdqpatch.optimizing.optimize import optimize
from qdqpatch.optimizing.placements import placement_for
from qdqpatch.optimizing.result import RungResult
from qdqpatch.tasks.metrics import mean

pytestmark = pytest.mark.usefixtures("traced_once")

HEAD = "BertForSequenceClassification"


def test_a_processor_is_nothing_for_tensorrt(tmp_path: Path) -> None:
    write_embedder(tmp_path / "emb")
    options = ("--data", tmp_path / "texts.txt", "--target", "tensorrt", "--cpu", "avx2")
    result = invoke("optimize", tmp_path / "emb", tmp_path / "out", *options)
    assert "--cpu is for onnxruntime and openvino" in result.stderr


def test_for_tensorrt_readers_share_a_range(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def record(*arguments: Any) -> None:
        given.append(arguments[2])
        raise ConfigError("That is enough.")

    monkeypatch.setitem(ladder.STEPS, "ptq", record)
    for config in (None, qdqpatch.QDQConfig.preset("outputs")):
        with pytest.raises(ConfigError, match="enough"):
            qdqpatch.optimize(
                models.float_model(HEAD),
                distinct_texts(24),
                target="tensorrt",
                config=config,
                tokenizer=tiny_tasks.tokenizer(),
            )
    assert given == [{"fuse_inputs": True}] * 2


def test_for_tensorrt_nothing_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_embedder(tmp_path / "emb")
    Path(tmp_path / "texts.txt").write_text("\n".join(distinct_texts(24)), encoding="utf-8")
    figure = mean("cosine", [1.0, 1.0], in_percent=False)
    found = ladder.Climb()
    best = qdqpatch.quantize(AutoModel.from_pretrained(tmp_path / "emb"))
    found.take(RungResult("ranges", 1.0, Judged({figure.name: figure}, 0.0, 0.0)), best, {})
    monkeypatch.setattr("qdqpatch.optimizing.optimize.climb", lambda *arguments: found)
    out = tmp_path / "out"
    written = Export(out, out / "onnx/model.onnx", "tensorrt", 10**6, None, [], None)
    monkeypatch.setattr(
        "qdqpatch.exporter.export.prepare_export", lambda *arguments: lambda folder, out: written
    )
    options = ("--data", tmp_path / "texts.txt", "--target", "tensorrt")
    result = invoke("optimize", tmp_path / "emb", out, *options)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("tensorrt (qdqbert), judged in onnxruntime ")
    assert lines[0].endswith("; not timed, which takes a GPU")
    assert lines[1].split() == ["Rung", "Seconds", "cosine", "Budget"]
    assert f"qdqpatch lint {written.file} --target tensorrt --build" in result.stderr


def test_for_tensorrt_all_that_read_a_tensor_have_one_range() -> None:
    batches = [models.inputs(seed=seed) for seed in range(6)]
    found = optimize(models.build(), batches, target="tensorrt", shape=(1, 8), keep_best=True, seconds=1e-9)
    assert found.settings["fuse_inputs"] is True
    groups = readers(found.model, batches[0])
    assert len(groups) == 4
    for group in groups:
        assert len({found.model.get_submodule(path).amax.item() for path in group}) == 1
    assert not placement_for("onnxruntime", "states").fuse_inputs
