"""`qdqpatch bench`: what it prints and writes, and how it fails."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import models
import pytest
import torch
from checkpoints import write_checkpoint
from click.testing import CliRunner, Result
from exported import write_onnx

import qdqpatch.cli.bench
from qdqpatch.bench import side_by_side
from qdqpatch.bench.process import Footprint
from qdqpatch.cli import main

FAST = ("--rounds", "1", "--threads", "1")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command in a folder with `float`, `int8` and `a.onnx`, without processes of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(side_by_side, "alone", lambda *job: Footprint(0.5, 3_000_000, 9_000_000))
    write_checkpoint(tmp_path / "float")
    models.calibrated("BertForMaskedLM").save_pretrained("int8")
    models.config().save_pretrained(tmp_path)
    write_onnx(tmp_path / "a.onnx")
    return lambda *arguments: CliRunner().invoke(main, ["bench", *map(str, arguments)])


def table(result: Result) -> list[list[str]]:
    """Return the cells of the table's rows, split at two spaces or more."""
    assert result.exit_code == 0, result.output
    lines = [line.strip() for line in result.stdout.splitlines()]
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return [cells for cells in rows if len(cells) == 10]


def test_the_table(bench) -> None:
    result = bench("float", "int8", "a.onnx", "--shape", "1x8", "--shape", "2x8", *FAST)
    head, *rows = table(result)
    assert head == [
        *("Model", "Engine", "Shape", "p50 ms", "p90 ms"),
        *("Seq/s", "Speed-up", "Load s", "Size MB", "Memory MB"),
    ]
    models_of_a_shape = [
        ("float", "torch"),
        ("int8", "torch (1)"),
        ("a.onnx", "onnxruntime"),
        ("a.onnx", "openvino"),
    ]
    # OpenVINO computes in bfloat16 where the processor can, and then has a note.
    found = [(name, engine.replace(" (2)", ""), shape) for name, engine, shape, *_ in rows]
    assert found == [(*each, shape) for shape in ("1x8", "2x8") for each in models_of_a_shape]
    assert [row[6] for row in rows if row[0] == "float"] == ["1.00x", "1.00x"]
    assert {tuple(row[7:10:2]) for row in rows} == {("0.50", "3")}
    assert "1 thread, 1 rounds in turns" in result.stdout
    assert "\n(1) fake-quantized in float: " in result.stdout
    assert "Speed-up: over float in torch at the same shape, by p50." in result.stdout
    assert result.stderr == ""


def test_a_narrow_terminal_cuts_nothing(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    result = bench("a.onnx", "--engine", "onnxruntime", "--shape", "1x8", *FAST)
    assert len(table(result)) == 2
    assert "…" not in result.stdout


def test_default_shapes_are_cut_and_it_says_so(bench) -> None:
    result = bench("a.onnx", "--engine", "onnxruntime", *FAST)
    assert [row[2] for row in table(result)[1:]] == ["1x32", "8x32"]
    assert "Sequences: cut to 32 tokens, the most that a.onnx takes." in result.stdout


def test_a_static_graph_has_dashes(bench) -> None:
    write_onnx(Path("static.onnx"), (1, 8))
    result = bench(
        *("a.onnx", "static.onnx", "--engine", "onnxruntime", "--shape", "1x8", "--shape", "2x8", *FAST)
    )
    *_, last = table(result)
    assert last[:7] == ["static.onnx", "onnxruntime (1)", "2x8", "-", "-", "-", "-"]
    assert "(1) takes 1x8 alone" in result.stdout


def test_json_is_all_there_is_on_standard_output(bench) -> None:
    result = bench("a.onnx", "--engine", "onnxruntime", "--shape", "2x8", "--json", *FAST)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    (row,) = data["results"]
    assert (data["threads"], data["rounds"], data["baseline"]) == (1, 1, "a.onnx in onnxruntime")
    assert list(data["versions"]) == ["onnxruntime"]
    assert (row["model"], row["engine"], row["shape"], row["batch"], row["length"]) == (
        *("a.onnx", "onnxruntime", "2x8"),
        *(2, 8),
    )
    assert (row["speedup"], row["load_s"], row["memory_mb"], row["process_memory_mb"]) == (1, 0.5, 3, 9)
    assert row["size_mb"] == Path("a.onnx").stat().st_size / 1e6
    assert 0 < row["p50_ms"] <= row["p90_ms"]


def test_the_plot(bench) -> None:
    result = bench("a.onnx", "--shape", "1x8", "--plot", "deep/chart.png", *FAST)
    assert result.exit_code == 0, result.output
    assert result.stderr == "Wrote deep/chart.png.\n"
    assert Path("deep/chart.png").read_bytes().startswith(b"\x89PNG")
    assert len(table(result)) == 3


def test_what_an_engine_refuses_is_told(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = side_by_side.load

    def picky(contender, threads):
        if contender.engine == "openvino":
            raise qdqpatch.errors.EngineError("openvino cannot load [it]")
        return real(contender, threads)

    monkeypatch.setattr(side_by_side, "load", picky)
    result = bench("a.onnx", "--shape", "1x8", *FAST)
    assert [row[1] for row in table(result)[1:]] == ["onnxruntime"]
    assert result.stderr == "Skipped a.onnx in openvino: openvino cannot load [it]\n"


def test_threads_are_one_for_each_core_unless_told(bench) -> None:
    before = torch.get_num_threads()
    for options, threads in ([], before), (["--threads", before + 1], before + 1):
        result = bench("float", "--shape", "1x8", "--rounds", 1, "--json", *options)
        assert json.loads(result.stdout)["threads"] == threads
        assert torch.get_num_threads() == before


def test_mistakes_are_told_in_one_line(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*arguments, **options):
        raise AssertionError("this comes before any measuring")

    monkeypatch.setattr(side_by_side, "interleave", measured)
    Path("empty").mkdir()
    Path("broken.onnx").write_bytes(b"nonsense")
    write_onnx(Path("static.onnx"), (1, 8))
    write_onnx(Path("other.onnx"), ids="pixels")
    for arguments, fragment in (
        (["missing.onnx"], "There is no file missing.onnx."),
        (["a/b/missing"], "There is no folder a/b/missing."),
        (["float", "empty"], "There is nothing to run in empty"),
        (["float/vocab.txt"], "neither a folder nor an .onnx or .xml file"),
        (["broken.onnx"], "runs in no engine"),
        (["broken.onnx", "--engine", "openvino"], "openvino cannot load broken.onnx"),
        (["other.onnx", "--engine", "onnxruntime"], "other.onnx in onnxruntime takes pixels; bench makes"),
        (["static.onnx", "--shape", "2x8"], "--shape 1x8"),
        (["float", "--shape", "1x64"], "1x64 is too long: float takes at most 32 tokens."),
        (["float", "--engine", "onnxruntime"], "float runs in torch, not in onnxruntime."),
        (["float", "--plot", "chart.jpg"], "must end in .png or .svg"),
        (["float", "--plot", "a.onnx/chart.png"], "Cannot write a.onnx/chart.png"),
    ):
        result = bench(*arguments)
        assert result.exit_code == 1, (arguments, result.output)
        assert result.stderr.startswith("Error: ")
        assert fragment in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert result.stdout == ""


def test_what_is_not_installed_is_told_in_one_line(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("onnxruntime", "matplotlib"):
        monkeypatch.setitem(sys.modules, module, None)
    for arguments, command in (
        (["a.onnx", "--engine", "onnxruntime"], "pip install onnxruntime"),
        (["float", "--plot", "chart.png"], 'pip install "qdqpatch[report]"'),
    ):
        result = bench(*arguments)
        assert result.exit_code == 1
        assert command in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_wrong_usage_exits_2(bench) -> None:
    for arguments in (
        [],
        ["float", "--shape", "1*8"],
        ["float", "--engine", "tensorrt"],
        ["float", "--rounds", "0"],
        ["float", "--threads", "0"],
    ):
        assert bench(*arguments).exit_code == 2, arguments


@pytest.mark.slow
def test_everything_with_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "float")
    write_onnx(tmp_path / "a.onnx")
    arguments = ["bench", "float", "a.onnx", "--engine", "torch", "--engine", "onnxruntime", "--shape", "1x8"]
    result = CliRunner().invoke(main, [*arguments, "--json", *FAST])
    assert result.exit_code == 0, result.output
    for row in json.loads(result.stdout)["results"]:
        assert 0 < row["load_s"] < 60
        assert 0 <= row["memory_mb"] < row["process_memory_mb"] < 2000
