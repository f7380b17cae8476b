"""`optimize` on tiny models: what it chooses, where it stops, what it says and writes."""

import copy
import json
from pathlib import Path
from typing import Any

import models
import onnx
import pytest
import tiny_tasks
import torch
from commands import invoke
from sentence_folders import write_embedder
from tiny_tasks import distinct_texts
from transformers import AutoModel

import qdqpatch
from qdqpatch.engines.sessions import ENGINES
from qdqpatch.errors import BudgetError, CalibrationError, ConfigError, QuantizedError
from qdqpatch.optimizing import ladder
from qdqpatch.optimizing.budget import Judged
from qdqpatch.optimizing.result import RungResult
from qdqpatch.optimizing.rungs import Rung
from qdqpatch.patching.apply import is_quantized
from qdqpatch.tasks.metrics import mean

pytestmark = pytest.mark.usefixtures("traced_once")

HEAD = "BertForSequenceClassification"


@pytest.fixture(scope="module")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with an optimized embedder `out`, and what the command printed."""
    folder = tmp_path_factory.mktemp("optimized")
    write_embedder(folder / "emb")
    (folder / "texts.txt").write_text("\n".join(distinct_texts(72)), encoding="utf-8")
    result = invoke(
        "optimize", folder / "emb", folder / "out", "--data", folder / "texts.txt", "--shape", "1x8",
        "--cpu", "avx2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder, result.output


@pytest.mark.slow
def test_the_table_says_what_each_rung_gave(optimized: tuple[Path, str]) -> None:
    _, output = optimized
    lines = output.splitlines()
    assert lines[0].startswith("onnxruntime (linear-only, asymmetric), judged in onnxruntime ")
    assert "on 24 texts, calibrated with 48; ms and speed at 1x8" in lines[0]
    assert lines[1].split() == ["Rung", "Seconds", "cosine", "top-10", "kept", "ms", "Speed", "Budget"]
    first, ranges = (line.split() for line in lines[3:5])
    assert first[0] == "float"
    assert (first[2:4], first[-1]) == (["1.0000", "100.00"], "1.00x")
    assert ranges[0] == "ranges"
    assert float(ranges[2]) > 0.995
    assert ranges[-2:] == ["met", "chosen"]
    assert (
        "cosine of at least 0.995 and top-10 kept of at least 95 is met by: ranges (linear-only, asymmetric)."
        in output
    )
    assert "12 of 16 matmuls run as integer kernels" in output


@pytest.mark.slow
def test_the_folder_is_ready_to_serve(optimized: tuple[Path, str]) -> None:
    folder, _ = optimized
    out = folder / "out"
    record = json.loads((out / "qdqpatch.json").read_text(encoding="utf-8"))
    assert record["optimization"]["met"]
    assert record["optimization"]["rungs"][1]["figures"]["cosine"] > 0.995
    assert record["exports"]["onnx/model.onnx"]["cpu"] == "avx2"
    assert len(record["data"]["sha256"]) == 64
    assert record["calibration"] == {
        "weight_method": "pairs", "samples": 48, "seed": 0, "max_length": 12
    }  # fmt: skip
    weights = onnx.load(out / "onnx/model.onnx").graph.initializer
    types = {weight.data_type for weight in weights if "layer" in weight.name and "quantized" in weight.name}
    assert types == {onnx.TensorProto.INT8}
    assert "cosine of at least 0.995 and top-10 kept of at least 95, met." in (out / "README.md").read_text(
        encoding="utf-8"
    )
    assert is_quantized(AutoModel.from_pretrained(out))
    outputs = (
        ENGINES["onnxruntime"]
        .load(out / "onnx/model.onnx")
        .run_tensors(dict(tiny_tasks.tokenizer()(["the cat"], return_tensors="pt")))
    )
    assert "sentence_embedding" in outputs
    assert invoke("verify", out).exit_code == 0


@pytest.mark.slow
def test_in_place_as_it_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing meets the budget: the ladder is climbed to its end, and the best model kept on request."""
    rungs = (
        Rung("ranges", 1),
        Rung("shift", 1, switches={"shift": True, "correct_biases": True}),
        Rung("units in float", 1, "float units"),
        Rung("late", 1e9),
    )
    model = models.float_model(HEAD)
    weights = model.bert.encoder.layer[0].output.dense.weight
    climbs: list[ladder.Climb] = []
    seen: dict[str, set[int]] = {}
    measure = ladder.measure

    def climb(material: ladder.Material, *arguments: Any, **options: Any) -> ladder.Climb:
        texts = {"judged": material.held.examples, "chosen by": material.choosing}
        seen.update({name: {*map(id, examples)} for name, examples in texts.items()})
        climbs.append(ladder.climb(material, *arguments, rungs=rungs, **options))
        return climbs[-1]

    def measured(model: Any, task: Any, examples: Any, **options: Any) -> Any:
        assert {*map(id, examples)} == seen["chosen by"]
        return measure(model, task, examples, **options)

    monkeypatch.setattr("qdqpatch.optimizing.optimize.climb", climb)
    monkeypatch.setattr(ladder, "measure", measured)
    # Nothing is near enough.
    monkeypatch.setattr("qdqpatch.optimizing.budget._apart", lambda metric: 1.0)
    options: dict[str, Any] = {
        "tokenizer": tiny_tasks.tokenizer(),
        "max_drop": 0.5,
        "seconds": 1e6,
        "shape": (1, 8),
        "held_back": 8,
    }
    found = qdqpatch.optimize(model, distinct_texts(24), target="onnxruntime", keep_best=True, **options)
    assert found.model is model
    assert not found.met
    assert [rung.name for rung in found.rungs] == ["float", "ranges", "shift", "units in float", "late"]
    assert "not begun: takes about" in found.rungs[-1].note
    assert found.rungs[0].to_dict()["figures"] == {"unchanged predictions": 100.0}
    assert [rung.within_budget for rung in found.rungs[:2]] == [None, False]
    assert len(seen["chosen by"]) == 16
    assert not seen["chosen by"] & seen["judged"]
    assert "8 texts held back cannot resolve 0.5%" in repr(found)
    assert model.bert.encoder.layer[0].output.dense.weight is weights
    best = climbs[-1].best
    assert best is not None
    batch = dict(tiny_tasks.tokenizer()(distinct_texts(5), padding=True, return_tensors="pt"))
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, best.eval()(**batch).logits)


def test_in_place_ranges_that_are_not_symmetric(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their zero points go into the user's model too."""
    model = models.float_model(HEAD)
    config = qdqpatch.QDQConfig(activation={"symmetric": False})
    best = qdqpatch.ptq(copy.deepcopy(model), [models.inputs(HEAD)], config, method="max")
    figure = mean("unchanged predictions", [1.0, 1.0])
    found = ladder.Climb()
    found.take(RungResult("ranges", 1.0, Judged({figure.name: figure}, 0.0, 0.0)), best, {})
    monkeypatch.setattr("qdqpatch.optimizing.optimize.climb", lambda *arguments: found)
    qdqpatch.optimize(model, distinct_texts(24), tokenizer=tiny_tasks.tokenizer(), config=config)
    with torch.no_grad():
        assert torch.equal(model(**models.inputs(HEAD)).logits, best(**models.inputs(HEAD)).logits)


def test_tuning_pools_as_the_folder_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_embedder(tmp_path / "emb")
    given = []

    def record(*arguments: Any, head: Any, **options: Any) -> None:
        given.append(head)
        raise ConfigError("enough")

    monkeypatch.setattr(ladder, "ptq", record)
    with pytest.raises(ConfigError, match="enough"):
        qdqpatch.optimize(
            AutoModel.from_pretrained(tmp_path / "emb"),
            distinct_texts(24),
            tokenizer=tiny_tasks.tokenizer(),
        )
    Path(tmp_path / "texts.txt").write_text("\n".join(distinct_texts(24)), encoding="utf-8")
    data = ("--data", tmp_path / "texts.txt")
    assert "enough" in invoke("optimize", tmp_path / "emb", tmp_path / "out", *data).stderr
    states, mask = torch.arange(24.0).view(1, 2, 12), torch.ones(1, 2)
    for head in given:
        found = head(states, mask)
        assert torch.equal(found, torch.nn.functional.normalize(states[:, 0], dim=-1))
    assert len(given) == 2


def test_what_was_found_is_shown_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_embedder(tmp_path / "emb")
    Path(tmp_path / "texts.txt").write_text("\n".join(distinct_texts(24)), encoding="utf-8")
    best = qdqpatch.quantize(AutoModel.from_pretrained(tmp_path / "emb"))
    figure = mean("cosine", [1.0, 1.0], in_percent=False)
    found = ladder.Climb()
    found.take(RungResult("ranges", 1.0, Judged({figure.name: figure}, 0.0, 0.0)), best, {})
    monkeypatch.setattr("qdqpatch.optimizing.optimize.climb", lambda *arguments: found)
    result = invoke("optimize", tmp_path / "emb", tmp_path / "out", "--data", tmp_path / "texts.txt")
    assert result.exit_code == 1  # it has no ranges, and is not exported
    assert "chosen" in result.stdout
    assert not (tmp_path / "out").exists()


def test_nothing_is_near_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the model is as it was."""
    model = models.float_model(HEAD)
    best = models.calibrated(HEAD)
    judged = Judged({"unchanged predictions": mean("unchanged predictions", [1.0, 0.0])}, 49.0, -50.0)
    found = ladder.Climb()
    found.take(RungResult("ranges", 1.0, judged), best, {})
    monkeypatch.setattr("qdqpatch.optimizing.optimize.climb", lambda *arguments: found)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(BudgetError) as caught:
        qdqpatch.optimize(model, distinct_texts(24), tokenizer=tiny_tasks.tokenizer())
    assert str(caught.value) == (
        "Nothing meets unchanged predictions of at least 99. Nearest: ranges (no-residual, asymmetric), "
        "unchanged predictions 50.00. To have it all the same: keep_best=True."
    )
    assert not is_quantized(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_refused() -> None:
    with pytest.raises(QuantizedError, match="begins with the float one"):
        qdqpatch.optimize(models.calibrated(HEAD), [])
    model = models.float_model(HEAD)
    with pytest.raises(ConfigError, match="There is no target 'tvm'"):
        qdqpatch.optimize(model, [], target="tvm")
    with pytest.raises(CalibrationError, match=r"^3 texts cannot be divided"):
        qdqpatch.optimize(model, distinct_texts(3), tokenizer=tiny_tasks.tokenizer())
    assert not is_quantized(model)


def test_what_the_float_model_gives_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is found before a rung is climbed."""
    monkeypatch.setattr("qdqpatch.optimizing.optimize.climb", None)
    options: dict[str, Any] = {"tokenizer": tiny_tasks.tokenizer()}
    model = models.build(HEAD, num_labels=1).eval()
    model.classifier.weight.data.zero_()
    with pytest.raises(ConfigError, match="gives the same score for all of 8 sequences"):
        qdqpatch.optimize(model, distinct_texts(24), **options)
    model = models.build(HEAD).eval()
    model.classifier.bias.data[0] = torch.nan
    with pytest.raises(ConfigError, match="The float model gives NaN for the texts held back"):
        qdqpatch.optimize(model, distinct_texts(24), **options)


def test_without_ranges_the_ladder_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with the first rung is said: there is nothing to go on with."""

    def refused(*arguments: object) -> None:
        raise ConfigError("This cannot be calibrated.")

    monkeypatch.setitem(ladder.STEPS, "ptq", refused)
    monkeypatch.setattr("qdqpatch.optimizing.engine.Place.write", lambda *arguments: None)
    with pytest.raises(ConfigError, match=r"^This cannot be calibrated\.$"):
        qdqpatch.optimize(models.float_model(HEAD), distinct_texts(24), tokenizer=tiny_tasks.tokenizer())


def test_times() -> None:
    result = invoke("optimize", "ckpt", "out", "--data", "d", "--time", "ten")
    assert result.exit_code == 2
    assert "'ten' is no time: write 90s, 10m or 1h." in result.output
