"""The report of a benchmark, and its chart."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdqpatch.bench.chart import write_chart
from qdqpatch.bench.report import Benchmark, BenchmarkRow, rounded
from qdqpatch.engines.shapes import Shape
from qdqpatch.errors import ReportError
from qdqpatch.report.figures import check_can_plot


def row(model: str = "float", **changes: Any) -> BenchmarkRow:
    standard: dict[str, Any] = {
        "engine": "onnxruntime",
        "path": f"{model}.onnx",
        "shape": Shape(1, 128),
        "p50_ms": 12.34,
        "p90_ms": 1234.5,
        "sequences_per_s": 1.234,
        "speedup": 1.0,
        "load_s": 0.5,
        "size_mb": 438.6,
        "memory_mb": 900.0,
        "process_memory_mb": 1300.0,
        "note": None,
    }
    return BenchmarkRow(model, **standard | changes)


def report_of(*rows: BenchmarkRow, **changes: Any) -> Benchmark:
    standard: dict[str, Any] = {
        "threads": 2,
        "rounds": 3,
        "versions": {"onnxruntime": "1"},
        "baseline": "float in onnxruntime",
        "skipped": (),
    }
    return Benchmark(rows=rows, **standard | changes)


def test_json_of_a_report() -> None:
    report = report_of(row(), row("int8", p50_ms=None, speedup=None))
    data = json.loads(json.dumps(report.to_dict()))
    assert list(data) == [
        *("threads", "rounds", "warmup", "versions", "baseline", "shortened", "results", "skipped"),
        "exactness",
    ]
    assert data["results"][0] == {
        "model": "float",
        "engine": "onnxruntime",
        "path": "float.onnx",
        "shape": "1x128",
        "batch": 1,
        "length": 128,
        "p50_ms": 12.34,
        "p90_ms": 1234.5,
        "sequences_per_s": 1.234,
        "speedup": 1.0,
        "load_s": 0.5,
        "size_mb": 438.6,
        "memory_mb": 900.0,
        "process_memory_mb": 1300.0,
        "note": None,
        "p99_ms": None,
    }
    assert data["results"][1]["p50_ms"] is None


def test_notes_are_numbered() -> None:
    report = report_of(row(), row("b", note="slow"), row("c", note="odd"), row("d", note="slow"))
    assert [report.mark(row) for row in report.rows] == ["", " (1)", " (2)", " (1)"]
    assert report.footnotes() == [
        "(1) slow",
        "(2) odd",
        "Speed: over float in onnxruntime at the same shape, by p50.",
    ]


def test_rounding() -> None:
    assert [rounded(value) for value in (None, 0.1234, 12.34, 999.96, 1234.5)] == [
        "-",
        "0.12",
        "12.3",
        "1000.0",
        "1234",
    ]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_chart(here: Path, suffix: str) -> None:
    rows = [
        row(shape=shape, **changes)
        for shape in (Shape(1, 128), Shape(8, 128))
        for changes in ({}, {"model": "int8", "p50_ms": 4.0, "p90_ms": 5.0, "speedup": 3.09, "note": "odd"})
    ]
    missing = dict.fromkeys(("p50_ms", "p90_ms", "speedup"))
    skipping = row("static", shape=Shape(8, 128), note="takes 1x128 alone", **missing)
    file = Path(f"deep/chart{suffix}")
    for _ in range(2):  # the second time over the first
        write_chart(file, report_of(*rows, skipping))
    assert [path.name for path in Path("deep").iterdir()] == [file.name]
    if suffix == ".png":
        assert file.read_bytes().startswith(b"\x89PNG")
        from matplotlib.image import imread

        pixels = imread(file)
        assert pixels.shape[1] == 1200
        assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 10
    else:
        text = file.read_text(encoding="utf-8")
        for part in ("int8 in onnxruntime (1)", "4.00 ms   3.09x", "8 sequences of 128 tokens", "(1) odd"):
            assert part in text
        for part in ("static in onnxruntime (2)", "not run", "(2) takes 1x128 alone"):
            assert text.count(f">{part}<") == 1


def test_a_chart_that_cannot_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    Path("folder.png").mkdir()
    for file, message in {
        "chart.jpg": r"must end in \.png or \.svg",
        "folder.png": "is there and not a file",
        "file/chart.png": "Cannot write file/chart.png: Not a directory",
        "/proc/chart.png": "Cannot write /proc/chart.png",
    }.items():
        with pytest.raises(ReportError, match=message):
            check_can_plot(Path(file))
    check_can_plot(Path("new/chart.PNG"))
    assert sorted(path.name for path in here.iterdir()) == ["file", "folder.png"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ReportError, match="The chart needs matplotlib: pip install matplotlib"):
        check_can_plot(Path("chart.png"))
