"""What a command reads is never replaced, whichever of its options names it and whichever writes."""

import shutil
from pathlib import Path

import click
import pytest
from commands import invoke

from qdqpatch import QDQConfig
from qdqpatch.cli import COMMANDS, main
from qdqpatch.cli.places import READ, WRITTEN
from qdqpatch.output.file import HTML_MARK, SVG_MARK
from qdqpatch.sensitivity.config_file import write_config_file

OTHERS = {
    "label_column",
    "override",
    "prompt",
    "seconds",
    "shape",
    "shapes",
    "split",
    "subset",
    "text_column",
    "text_pair_column",
}
"""Parameters that are texts and no places."""


def commands() -> list[click.Command]:
    found = [main.get_command(click.Context(main), name) for name in COMMANDS]
    return [command for command in found if command is not None]


def test_of_every_parameter_it_is_known_whether_it_names_a_place() -> None:
    for command in commands():
        for parameter in command.params:
            if isinstance(parameter.type, click.Path) or parameter.type is click.STRING:
                assert parameter.name in {*READ, *WRITTEN, *OTHERS}, f"{command.name}: {parameter.name}"


@pytest.fixture
def places(shelf: Path, here: Path) -> Path:
    """Copies of what is on the shelf, and files that qdqpatch would replace as its own."""
    for name in ("float", "int8"):
        shutil.copytree(shelf / name, name)
    for name in ("texts.txt", "rows.tsv"):
        shutil.copy(shelf / name, name)
    write_config_file(Path("mixed.json"), QDQConfig.preset("linear-only"), force=False)
    for name in ("mixed.svg", "int8/mixed.json"):
        shutil.copy("mixed.json", name)
    Path("page.txt").write_bytes(HTML_MARK + b"\nthe cat\n")
    Path("rows.svg").write_bytes(SVG_MARK)
    return here


TRAIN = "train float --data rows.tsv"
SENSITIVITY = "sensitivity float --data rows.tsv --max-drop 1"

WRONG = [
    ("convert int8 int8 --force", "int8 is the checkpoint"),
    ("convert float int8 --calib int8/config.json --force", "int8 holds the calibration data"),
    ("convert float int8 --config int8/mixed.json --force", "int8 holds the configuration"),
    ("convert int8/../int8 ./int8 --force", "int8 is the checkpoint"),
    ("export int8 int8 --force", "int8 is the checkpoint"),
    ("export int8 . --force", ". holds the checkpoint"),
    (f"{TRAIN} int8 --teacher int8 --distill --force", "int8 is the teacher"),
    (f"{TRAIN} int8 --eval-data int8/config.json --force", "int8 holds the data to evaluate on"),
    (f"{TRAIN} int8 --config int8/mixed.json --force", "int8 holds the configuration"),
    ("train int8 int8 --data rows.tsv --force", "int8 is the checkpoint"),
    ("train float int8 --data int8/config.json --force", "int8 holds the data"),
    ("inspect int8 --html int8", "is a directory"),
    ("bench rows.svg --plot rows.svg", "rows.svg is a model"),
    ("bench float rows.svg --plot rows.svg", "rows.svg is a model"),
    ("sensitivity float --data rows.svg --plot rows.svg", "rows.svg is the data"),
    (
        "sensitivity float --data rows.tsv --config mixed.svg --plot mixed.svg",
        "mixed.svg is the configuration",
    ),
    (f"{SENSITIVITY} --config mixed.json --out mixed.json --force", "mixed.json is the configuration"),
    (f"{SENSITIVITY} --config mixed.json --out ./mixed.json --force", "mixed.json is the configuration"),
    ("sensitivity float --data mixed.json --max-drop 1 --out mixed.json --force", "mixed.json is the data"),
]


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_what_is_read_stays(line: str, message: str, places: Path) -> None:
    before = {path: path.read_bytes() for path in places.rglob("*") if path.is_file()}
    result = invoke(*line.split())
    assert result.exit_code in (1, 2), result.output
    assert message in result.stderr
    assert "that is read; write to another" in result.stderr or result.exit_code == 2
    assert before == {path: path.read_bytes() for path in places.rglob("*") if path.is_file()}


def test_two_results_in_one_file_are_wrong_usage(places: Path) -> None:
    result = invoke(*SENSITIVITY.split(), "--out", "a.png", "--plot", "./a.png")
    assert result.exit_code == 2
    assert "--out and --plot name the same file" in result.stderr
