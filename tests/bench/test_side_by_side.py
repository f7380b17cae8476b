"""The whole of a benchmark: which rows there are, and what is refused or skipped."""

import dataclasses
from pathlib import Path
from typing import Any

import models
import pytest
from benches import weigh_nothing
from exported import write_onnx, write_openvino

from qdqpatch.bench import side_by_side
from qdqpatch.bench.loading import load
from qdqpatch.bench.side_by_side import compare
from qdqpatch.engines.contenders import Contender
from qdqpatch.engines.shapes import Shape
from qdqpatch.errors import ConfigError, EngineError


@pytest.fixture
def weighed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, str]]:
    """Start no processes; collect what they would have been started for."""
    return weigh_nothing(monkeypatch)


def test_compare_gives_a_row_for_each_model_engine_and_shape(here: Path, weighed: list[Any]) -> None:
    write_onnx(here / "a.onnx")
    folder = here / "folder"
    folder.mkdir()
    write_openvino(folder / "openvino_model.xml", here / "a.onnx")
    for place in (here, folder):
        models.config().save_pretrained(place)
    steps: list[tuple[str, int, int]] = []
    report = compare(
        ["a.onnx", "folder"],
        shapes=[Shape(1, 8), Shape(4, 8), Shape(1, 16), Shape(1, 8)],
        threads=1,
        rounds=2,
        step=lambda *told: steps.append(told),
    )
    contenders = ["a.onnx in onnxruntime", "a.onnx in openvino", "folder in openvino"]
    assert [(row.name, str(row.shape)) for row in report.rows] == [
        (name, shape) for shape in ("1x8", "4x8", "1x16") for name in contenders
    ]
    assert weighed == [(name, 1, "4x8") for name in contenders]
    assert report.baseline == contenders[0]
    for rows in report.by_shape.values():
        first = rows[0]
        assert first.speedup == 1
        for row in rows:
            assert row.p50_ms is not None
            assert row.p90_ms is not None
            assert 0 < row.p50_ms <= row.p90_ms
            assert row.sequences_per_s == pytest.approx(1000 * row.shape.batch / row.p50_ms)
            assert row.speedup == pytest.approx(first.p50_ms / row.p50_ms)
            assert (row.load_s, row.memory_mb, row.process_memory_mb) == (0.5, 3, 9)
    assert report.rows[0].size_mb == (here / "a.onnx").stat().st_size / 1e6
    assert report.skipped == ()
    done = [told[1] for told in steps]
    assert done == sorted(done)
    assert {told[2] for told in steps} == {2 * 3 + 3 * 3}
    assert steps[-1][1:] == (15, 15)


def test_a_static_graph_runs_its_shape_alone(here: Path, weighed: list[Any]) -> None:
    write_onnx(here / "any.onnx")
    write_onnx(here / "static.onnx", (1, 8))
    models.config().save_pretrained(here)
    options: dict[str, Any] = {"engines": ["onnxruntime"], "rounds": 1}
    report = compare(["any.onnx", "static.onnx"], shapes=[Shape(1, 8), Shape(2, 8)], **options)
    assert weighed == [("any.onnx in onnxruntime", 1, "2x8"), ("static.onnx in onnxruntime", 1, "1x8")]
    *_, dynamic, static = report.rows
    assert dynamic.p50_ms is not None
    assert (static.p50_ms, static.p90_ms, static.sequences_per_s, static.speedup) == (None,) * 4
    assert static.note == "takes 1x8 alone"
    reverse = compare(["static.onnx", "any.onnx"], shapes=[Shape(1, 8), Shape(2, 8)], **options)
    assert reverse.rows[1].speedup is not None
    assert (reverse.rows[3].p50_ms is None, reverse.rows[3].speedup) == (False, None)
    with pytest.raises(ConfigError, match=r"made for inputs of 1x8 alone.* none of 1x9, 4x8.*: shapes 1x8$"):
        compare(["any.onnx", "static.onnx"], shapes=[Shape(1, 9), Shape(4, 8)], **options)


def test_sequences_that_are_too_long(here: Path, weighed: list[Any]) -> None:
    write_onnx(here / "a.onnx")
    models.config().save_pretrained(here)
    options: dict[str, Any] = {"engines": ["onnxruntime"], "rounds": 1}
    with pytest.raises(ConfigError, match=r"1x33 is too long: a\.onnx takes at most 32 tokens"):
        compare(["a.onnx"], shapes=[Shape(1, 32), Shape(1, 33)], **options)
    report = compare(["a.onnx"], **options)
    assert list(report.by_shape) == [Shape(1, 32), Shape(8, 32)]
    assert report.shortened == "Sequences: cut to 32 tokens, the most that a.onnx takes."
    assert report.shortened in report.footnotes()


def test_an_engine_that_refuses_a_model_is_skipped_unless_asked_for(
    here: Path, weighed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_onnx(here / "a.onnx")
    models.config().save_pretrained(here)

    def picky(contender: Contender, threads: int) -> Any:
        if contender.engine in refusing:
            raise EngineError(f"{contender.engine} cannot load it")
        return load(contender, threads)

    monkeypatch.setattr(side_by_side, "load", picky)
    refusing = {"onnxruntime"}
    report = compare(["a.onnx"], shapes=[Shape(1, 8)], rounds=1)
    assert report.baseline == "a.onnx in openvino"
    assert [dataclasses.astuple(skipped) for skipped in report.skipped] == [
        ("a.onnx", "onnxruntime", "onnxruntime cannot load it")
    ]
    with pytest.raises(EngineError, match="onnxruntime cannot load it"):
        compare(["a.onnx"], shapes=[Shape(1, 8)], rounds=1, engines=["onnxruntime", "openvino"])
    refusing.add("openvino")
    both = r"^a\.onnx runs in no engine\. onnxruntime cannot load it openvino cannot load it$"
    with pytest.raises(EngineError, match=both):
        compare(["a.onnx"], shapes=[Shape(1, 8)], rounds=1)


def test_a_model_that_no_engine_knows(here: Path) -> None:
    write_onnx(here / "a.onnx", domain="unheard.of")
    with pytest.raises(EngineError, match=r"runs in no engine\. onnxruntime cannot load .* openvino cannot"):
        compare(["a.onnx"])
