"""`qdqpatch inspect` of a calibrated checkpoint: figures of its quantizers, and the page of --html."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import SENTENCES, write_checkpoint
from click.testing import Result
from commands import invoke
from safetensors.torch import load_file, save_file

from qdqpatch.calibration import Statistics
from qdqpatch.report.quantizers import STATISTICS_FILE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints `float`, `calibrated` and, without any range, `bare`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    write_checkpoint(folder / "float")
    (folder / "data.txt").write_text(SENTENCES, encoding="utf-8")
    calib = ["--calib", folder / "data.txt", "--method", "percentile", "--max-length", 16]
    for arguments in (["calibrated", *calib], ["bare"]):
        result = invoke("convert", folder / "float", folder / arguments[0], *arguments[1:])
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def inspect(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Inspect one of the checkpoints in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda name, *options: invoke("inspect", folder / name, *options)


def quantizers(result: Result) -> dict[str, dict[str, object]]:
    return {
        f"{site['path']}.{name}": settings
        for site in json.loads(result.stdout)["sites"]
        for name, settings in site["quantizers"].items()
    }


def test_convert_keeps_what_calibration_saw(folder: Path, tmp_path: Path) -> None:
    seen = Statistics.load(folder / "calibrated" / STATISTICS_FILE)
    assert len(seen) == 28
    assert not (folder / "bare" / STATISTICS_FILE).exists()
    assert invoke("convert", folder / "calibrated", tmp_path / "copy").exit_code == 0
    copied = Statistics.load(tmp_path / "copy" / STATISTICS_FILE)
    assert {path: quantizer.amax for path, quantizer in copied.items()} == {
        path: quantizer.amax for path, quantizer in seen.items()
    }


def test_a_model_with_quantized_weights_alone(folder: Path, tmp_path: Path) -> None:
    off = ["--override", "*input_quantizer=off", "--calib", folder / "data.txt"]
    result = invoke("convert", folder / "float", tmp_path / "weights", *off)
    assert result.exit_code == 0, result.output
    lines = invoke("inspect", tmp_path / "weights", "--ranges").stdout.splitlines()
    assert sum("_weight_quantizer" in line and " dB " in line for line in lines) == 12


def test_the_worst_quantizers_are_listed(inspect) -> None:
    figures = {
        path: quantizer["sqnr_db"] for path, quantizer in quantizers(inspect("calibrated", "--json")).items()
    }
    worst = sorted(figures, key=lambda path: figures[path])[:10]
    output = inspect("calibrated").stdout
    title = "The 10 quantizers of the lowest SQNR; --ranges lists all"
    lines = [line.split() for line in output.partition(title)[2].splitlines()]
    rows = [line for line in lines if line and line[0].startswith("bert.")]
    assert [row[0] for row in rows] == worst
    assert [row[2] for row in rows] == [f"{figures[path]:.1f}" for path in worst]
    last = output.splitlines()[-1]
    assert "40 of its 40 quantizers have a range" in last
    assert "--html" in last


def test_all_quantizers_are_listed_by_path(inspect) -> None:
    data = quantizers(inspect("calibrated", "--json"))
    output = inspect("calibrated", "--ranges").stdout
    rows = [line for line in output.splitlines() if "_quantizer " in line]
    assert [row.split()[0] for row in rows] == list(data)
    for row, quantizer in zip(rows, data.values(), strict=True):
        assert f" {quantizer['sqnr_db']:.1f} dB " in row
        assert "% " in row
    worst = sorted(data, key=lambda path: data[path]["sqnr_db"])[:3]
    told = [line for line in output.splitlines() if line.startswith("Lowest SQNR: ")]
    assert [line.split()[2].strip(",") for line in told] == worst


def test_json_has_the_figures(inspect) -> None:
    for path, quantizer in quantizers(inspect("calibrated", "--json")).items():
        assert 0 <= quantizer["clipped_share"] < 0.05
        assert 5 < quantizer["sqnr_db"] < 70
        if path.endswith("_weight_quantizer"):
            assert quantizer["clipped_share"] == 0
    for quantizer in quantizers(inspect("bare", "--json")).values():
        assert (quantizer["clipped_share"], quantizer["sqnr_db"]) == (None, None)
    assert all("sqnr_db" not in quantizer for quantizer in quantizers(inspect("float", "--json")).values())


def test_without_statistics_activations_have_no_figures(inspect, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "calibrated", "old", ignore=shutil.ignore_patterns(STATISTICS_FILE))
    output = invoke("inspect", "old").stdout
    assert "lowest SQNR" not in output
    assert "There are no calibration statistics beside the weights" in output
    rows = [
        line for line in invoke("inspect", "old", "--ranges").stdout.splitlines() if "_quantizer " in line
    ]
    assert sum(" dB " in row for row in rows) == 12
    assert sum(row.split().count("-") == 2 for row in rows) == 28


def test_damaged_statistics(inspect, folder: Path) -> None:
    shutil.copytree(folder / "calibrated", "broken")
    Path("broken", STATISTICS_FILE).write_bytes(b"broken")
    result = invoke("inspect", "broken")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: Cannot read the statistics")
    assert len(result.stderr.splitlines()) == 1


def test_html_writes_the_page(inspect) -> None:
    for _ in range(2):  # the second time over the first
        result = inspect("calibrated", "--html", "deep/page.html")
        assert result.exit_code == 0, result.output
        assert "Wrote deep/page.html: 40 quantizers" in result.stderr
    page = Path("deep/page.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("<figure ") == 32
    assert [path.name for path in Path("deep").iterdir()] == ["page.html"]
    assert len(page) < 300_000
    assert json.loads(inspect("calibrated", "--html", "page.html", "--json").stdout)["model"]


def test_html_fails_in_one_line(inspect, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    Path("folder").mkdir()
    assert inspect("calibrated", "--html", "folder").exit_code == 2
    for name, target, fragment in (
        ("float", "page.html", "is a float checkpoint"),
        ("calibrated", "file/page.html", "Cannot write"),
    ):
        result = inspect(name, "--html", target)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: ")
        assert fragment in result.stderr
        assert len(result.stderr.splitlines()) == 1
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = inspect("calibrated", "--html", "page.html")
    assert result.exit_code == 1
    assert "pip install matplotlib" in result.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["file", "folder"]


def test_a_range_of_zero_is_told_once(folder: Path, tmp_path: Path) -> None:
    ckpt = shutil.copytree(folder / "calibrated", tmp_path / "ckpt")
    tensors = load_file(ckpt / "model.safetensors")
    name = next(name for name in tensors if name.endswith("_input_quantizer._amax"))
    save_file({**tensors, name: torch.zeros(())}, ckpt / "model.safetensors", {"format": "pt"})
    for command in (["inspect", ckpt], ["convert", ckpt, tmp_path / "out"]):
        result = invoke(*command)
        assert result.exit_code == 0
        assert result.stderr.count(f"The stored range of {name.removesuffix('._amax')} is 0") == 1
