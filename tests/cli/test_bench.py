"""`qdqpatch bench`: its table, its JSON, its chart, what it says besides, and errors in one line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
from benches import weigh_nothing
from click.testing import CliRunner, Result
from commands import assert_fails
from exported import write_onnx

from qdqpatch.bench import side_by_side
from qdqpatch.bench.loading import load
from qdqpatch.bench.report import COLUMNS, Benchmark
from qdqpatch.cli import main
from qdqpatch.engines.contenders import Contender
from qdqpatch.engines.shapes import Shape
from qdqpatch.errors import EngineError

FOOTNOTE = "Speed: over a.onnx in onnxruntime at the same shape, by p50."


@pytest.fixture
def bench(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command beside a.onnx, and b.onnx that takes one sequence of 8 tokens; start no processes."""
    write_onnx(here / "a.onnx")
    write_onnx(here / "b.onnx", (1, 8))
    models.config().save_pretrained(here)
    weigh_nothing(monkeypatch)
    return lambda *arguments: CliRunner().invoke(main, ["bench", *arguments])


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ONNX Runtime load nothing."""

    def picky(contender: Contender, threads: int) -> Any:
        if contender.engine == "onnxruntime":
            raise EngineError("onnxruntime cannot load [it]")
        return load(contender, threads)

    monkeypatch.setattr(side_by_side, "load", picky)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Measure nothing; collect what would have been measured."""
    calls: list[Any] = []

    def record(*arguments: Any, **options: Any) -> Benchmark:
        calls.append((arguments, options))
        return Benchmark(1, 1, {}, "a.onnx in onnxruntime", (), ())

    monkeypatch.setattr(side_by_side, "compare", record)
    return calls


def test_the_table(bench) -> None:
    options = [
        "--engine",
        "onnxruntime",
        "--shape",
        "1x8",
        "--shape",
        "2x8",
        "--rounds",
        "2",
        "--threads",
        "1",
    ]
    result = bench("a.onnx", "b.onnx", *options)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    *lines, exact = lines
    assert exact.startswith("a.onnx in onnxruntime: batch 16 = batch 1: ")
    title, header, _, *rest, note, speedup = lines
    assert title == "1 thread, 2 rounds in turns"
    assert header.split() == " ".join(COLUMNS).split()
    first, second, third, last = (line.split() for line in rest)
    assert (first[:3], first[7:]) == (["a.onnx", "onnxruntime", "1x8"], ["1.00x", "0.50", "0.0", "3"])
    assert (second[:3], len(second)) == (["b.onnx", "onnxruntime", "1x8"], len(COLUMNS))
    assert (third[:3], len(third)) == (["a.onnx", "onnxruntime", "2x8"], len(COLUMNS))
    assert last == ["b.onnx", "onnxruntime", "(1)", "2x8", *"-----", "0.50", "0.0", "3"]
    assert (note, speedup) == ("(1) takes 1x8 alone", FOOTNOTE)


def test_json(bench) -> None:
    result = bench("a.onnx", "--shape", "1x8", "--rounds", "2", "--threads", "1", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    data = json.loads(result.stdout)
    assert {key: data[key] for key in ("threads", "rounds", "baseline", "shortened", "skipped")} == {
        "threads": 1,
        "rounds": 2,
        "baseline": "a.onnx in onnxruntime",
        "shortened": None,
        "skipped": [],
    }
    assert list(data["versions"]) == ["onnxruntime", "openvino"]
    first, second = data["results"]
    assert (first["engine"], first["path"], first["shape"]) == ("onnxruntime", "a.onnx", "1x8")
    assert (first["speedup"], first["load_s"], first["memory_mb"]) == (1, 0.5, 3)
    assert 0 < first["p50_ms"] <= first["p90_ms"]
    assert second["engine"] == "openvino"


def test_the_chart_is_told_of_beside_the_json(bench) -> None:
    arguments = [
        "a.onnx",
        "--engine",
        "onnxruntime",
        "--shape",
        "1x8",
        "--rounds",
        "1",
        "--plot",
        "[b]/c.svg",
    ]
    result = bench(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (0, "Wrote [b]/c.svg.\n")
    assert len(json.loads(result.stdout)["results"]) == 1
    assert "a.onnx in onnxruntime" in Path("[b]/c.svg").read_text(encoding="utf-8")


def test_an_engine_that_is_skipped_is_told_of(bench, refusing: None) -> None:
    arguments = ["a.onnx", "--shape", "1x8", "--rounds", "1"]
    result = bench(*arguments)
    assert result.exit_code == 0
    assert result.stderr == "Skipped a.onnx in onnxruntime: onnxruntime cannot load [it]\n"
    assert FOOTNOTE.replace("onnxruntime", "openvino") in result.stdout
    data = json.loads(bench(*arguments, "--json").stdout)
    reason = "onnxruntime cannot load [it]"
    assert data["skipped"] == [{"model": "a.onnx", "engine": "onnxruntime", "reason": reason}]


def test_quiet_prints_the_table_alone(bench, refusing: None) -> None:
    result = bench("a.onnx", "--shape", "1x8", "--rounds", "1", "--plot", "c.svg", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "p50 ms" in result.stdout
    assert Path("c.svg").is_file()


def test_options_reach_the_library(bench, idle: list[Any]) -> None:
    assert bench("a.onnx", "b.onnx", "--engine", "openvino", "--engine", "torch").exit_code == 0
    assert (
        bench("b.onnx", "--shape", "1x8", "--shape", "8x16", "--threads", "3", "--rounds", "7").exit_code == 0
    )
    (first, defaults), (second, options) = idle
    assert (first, second) == ((("a.onnx", "b.onnx"),), (("b.onnx",),))
    assert callable(defaults.pop("step"))
    assert callable(options.pop("step"))
    assert defaults == {
        **{"engines": ("openvino", "torch"), "shapes": (), "threads": None, "rounds": 20},
        **{"warmup": 1, "iterations": None},
    }
    assert options == {
        "engines": (),
        "shapes": (Shape(1, 8), Shape(8, 16)),
        "threads": 3,
        "rounds": 7,
        "warmup": 1,
        "iterations": None,
    }


def test_errors_are_one_line(bench) -> None:
    Path("bad.onnx").write_bytes(b"nonsense")
    Path("empty").mkdir()
    for arguments, fragment in (
        (["missing.onnx"], "There is no file missing.onnx."),
        (["empty"], "There is nothing to run in empty: none of model.safetensors"),
        (["a.onnx", "--engine", "torch"], "a.onnx runs in onnxruntime and openvino, not in torch."),
        (["a.onnx", "--shape", "1x33"], "1x33 is too long: a.onnx takes at most 32 tokens."),
        (["b.onnx", "--shape", "2x8"], "--shape 1x8"),
        (["bad.onnx", "--shape", "1x8"], "bad.onnx runs in no engine. onnxruntime cannot load"),
    ):
        assert_fails(bench(*arguments), fragment)


def test_a_chart_that_cannot_be_written_fails_before_the_work(bench, idle: list[Any]) -> None:
    assert_fails(
        bench("a.onnx", "--plot", "c.jpg"), "Cannot plot to c.jpg: the name must end in .png or .svg."
    )
    assert_fails(bench("a.onnx", "--plot", "a.onnx/c.svg"), "Cannot write a.onnx/c.svg: Not a directory")
    assert idle == []
    assert bench("a.onnx", "--engine", "onnxruntime").exit_code == 0
    assert len(idle) == 1


def test_wrong_usage(bench, idle: list[Any]) -> None:
    for arguments, fragment in (
        ([], "Missing argument 'MODEL...'"),
        (["a.onnx", "--shape", "8"], "'--shape': '8' is no shape: write BATCHxLENGTH, such as 8x128."),
        (["a.onnx", "--shape", "1x8", "--shape", "0x8"], "'0x8' is no shape"),
        (["a.onnx", "--engine", "tvm"], "'--engine': 'tvm' is not one of 'torch', 'onnxruntime', 'openvino'"),
        (["a.onnx", "--rounds", "0"], "'--rounds': 0 is not in the range x>=1."),
        (["a.onnx", "--threads", "0"], "'--threads': 0 is not in the range x>=1."),
    ):
        assert_fails(bench(*arguments), fragment, code=2)
    assert idle == []


@pytest.mark.slow
def test_load_time_and_memory_come_from_a_process(here: Path) -> None:
    write_onnx(here / "a.onnx")
    models.config().save_pretrained(here)
    arguments = ["a.onnx", "--engine", "onnxruntime", "--shape", "2x8", "--rounds", "1", "--json"]
    result = CliRunner().invoke(main, ["bench", *arguments])
    assert (result.exit_code, result.stderr) == (0, "")
    (row,) = json.loads(result.stdout)["results"]
    assert 0 < row["load_s"] < 60
    assert 0 <= row["memory_mb"] < row["process_memory_mb"]
    assert row["process_memory_mb"] > 50  # Python with torch


def test_nothing_is_imported_before_it_is_needed() -> None:
    lazy = {"onnx", "onnxruntime", "openvino", "matplotlib"}
    code = f"import sys, qdqpatch.cli; sys.exit(' '.join({lazy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""
