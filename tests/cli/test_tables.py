"""Tables: whole in 80 columns, whatever is in them."""

import errno
import sys
from pathlib import Path

import pytest
from benches import weigh_nothing
from checkpoints import SENTENCES, write_checkpoint
from click.testing import CliRunner, Result
from commands import invoke

from qdqpatch.bench.report import COLUMNS, NUMBERS
from qdqpatch.cli import main
from qdqpatch.cli.tables import table_lines, width

PATH = "bert.encoder.layer.{0..11}.attention.output.add_residual_input_quantizer"


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints in folders whose names look like markup."""
    folder = tmp_path_factory.mktemp("[bold]") / "[/]"
    write_checkpoint(folder / "float")
    (folder / "data[red].txt").write_text(SENTENCES, encoding="utf-8")
    result = invoke(
        "convert", folder / "float", folder / "int8[/b]", "--calib", folder / "data[red].txt",
        "--method", "max", "--export", "onnxruntime", "--max-length", 16,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"Wrote {folder / 'int8[/b]'}: 20 operations" in result.stderr
    assert f"texts in {folder / 'data[red].txt'} (text)" in result.stderr
    return folder


def assert_narrow(result: Result) -> None:
    assert result.exit_code in (0, 1), result.output
    assert not isinstance(result.exception, BaseException) or isinstance(result.exception, SystemExit)
    assert "…" not in result.output
    for line in result.stdout.splitlines():
        assert len(line) <= 80 or max(map(len, line.split())) > 60, line  # a long path is not broken


def test_a_table_that_fits_has_a_line_for_each_row() -> None:
    assert table_lines(["Name", "MB"], [["a", "1.5"], ["long", "12.0"]], 80, ["MB"]) == [
        "Name    MB", "──────────", "a      1.5", "long  12.0",
    ]  # fmt: skip


def test_one_that_does_not_has_the_first_column_in_lines_of_their_own() -> None:
    rows = [[PATH, "add", "one two three four"], [PATH, "add", "x"], ["b", "matmul", "five"]]
    lines = table_lines(["Module", "Operation", "Quantizers"], rows, 40)
    assert lines == [
        "Module", "  Operation  Quantizers", "─" * 40,
        PATH, "  add        one two three four", "  add        x", "b", "  matmul     five",
    ]  # fmt: skip
    narrow = table_lines(["Module", "Operation", "Quantizers"], rows, 28)
    assert "  add        one two three\n             four" in narrow


def test_the_table_of_bench_fits() -> None:
    row = [
        "models/int8/onnx",
        "onnxruntime (1)",
        "1x128",
        "123.4",
        "234.5",
        "345.6",
        "8,123",
        "12.34x",
        "12.34",
    ]
    lines = table_lines(COLUMNS, [[*row, "1234.5", "2345"]], 80, NUMBERS)
    assert max(map(len, lines)) <= 80
    assert lines[-1].split() == [*["onnxruntime", "(1)"], *row[2:], "1234.5", "2345"]


@pytest.mark.parametrize("name", ["float", "int8[/b]"])
@pytest.mark.parametrize("options", [(), ("--ranges",)])
def test_inspect(folder: Path, name: str, options: tuple[str, ...]) -> None:
    result = invoke("inspect", folder / name, *options)
    assert_narrow(result)
    assert f"{folder / name} is" in result.stdout
    assert len(result.stdout.splitlines()) < (70 if not options else 180)


def test_lint(folder: Path) -> None:
    result = invoke("lint", folder / "int8[/b]" / "onnx" / "model.onnx", "--target", "openvino")
    assert_narrow(result)


def test_bench(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weigh_nothing(monkeypatch)
    model = folder / "int8[/b]" / "onnx" / "model.onnx"
    result = invoke("bench", model, "--engine", "onnxruntime", "--shape", "1x8", "--rounds", 1)
    assert_narrow(result)


def test_eval(folder: Path) -> None:
    result = invoke("eval", folder / "float", folder / "int8[/b]", "--engine", "torch",
        "--data", folder / "data[red].txt", "--max-length", 16)  # fmt: skip
    assert_narrow(result)
    assert str(folder / "data[red].txt") in result.stdout


def test_sensitivity(folder: Path) -> None:
    result = invoke("sensitivity", folder / "int8[/b]", "--data", folder / "data[red].txt",
        "--max-length", 16, "--max-drop", 50, "--out", folder / "mixed[/b].json")  # fmt: skip
    assert_narrow(result)


def test_train(folder: Path) -> None:
    result = invoke("train", folder / "int8[/b]", folder / "out[/b]", "--distill", "--epochs", 1,
        "--data", folder / "data[red].txt", "--max-length", 16, "--batch-size", 2)  # fmt: skip
    assert_narrow(result)
    assert f"Wrote {folder / 'out[/b]'}." in result.stderr


def test_errors_and_warnings_are_shown_as_they_are(folder: Path) -> None:
    result = invoke("inspect", "./no[/b]such[bold]folder")
    assert "no[/b]such[bold]folder" in result.stderr
    result = invoke("convert", folder / "float", folder / "cls[/b]", "--task", "text-classification")
    assert f"Warning: {folder / 'float'} lacks these weights" in result.stderr


def test_an_encoding_that_lacks_a_sign_ends_nothing(folder: Path) -> None:
    """As on Windows where the output goes into a file."""
    narrow = CliRunner(charset="cp1252")
    result = narrow.invoke(main, ["inspect", str(folder / "float"), "-q"])
    assert result.exit_code == 0, result.output
    assert "-----" in result.stdout
    assert "There is no folder ./??" in narrow.invoke(main, ["inspect", "./日本"]).stderr


def test_output_that_cannot_be_printed_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk behind a redirect; and no output at all, as of some services."""

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qdqpatch.cli.tables.click.echo", full)
    result = invoke("inspect", folder / "float")
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: Cannot print the result: No space left on device.\n",
    )
    monkeypatch.undo()
    monkeypatch.setattr(sys, "stdout", None)
    assert table_lines(["Name", "MB"], [["a", "1.5"]], width())[1] == "─" * 9
