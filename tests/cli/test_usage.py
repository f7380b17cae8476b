"""Wrong usage: exit code 2, the option named, nothing begun and nothing written."""

import os
from pathlib import Path

import click
import pytest
from commands import invoke

from qdqpatch.cli import COMMANDS, main

LINES = {
    "bench": "bench a",
    "convert": "convert a out",
    "eval": "eval a --data rows.tsv",
    "export": "export a out",
    "inspect": "inspect a",
    "lint": "lint a.onnx --target tensorrt",
    "optimize": "optimize a out --data rows.tsv",
    "sensitivity": "sensitivity a --data rows.tsv",
    "train": "train a out --data rows.tsv",
}
"""Right usage, but for what is not there."""

WRONG = [
    "bench",
    "bench a --shape 8",
    "bench a --shape 0x8",
    "bench a --rounds 0",
    "convert a",
    "convert a ",
    "convert  out",
    "convert a out --calib=",
    "inspect a --html ",
    "convert a b c",
    "convert a out --preset int3",
    "convert a out --config no.json",
    "convert a out --config .",
    "convert a out --preset qdqbert --config rows.tsv",
    "convert a out --override *",
    "convert a out --override *=bits:4",
    "convert a out --override [0-11]*=off",
    "convert a out --samples 3",
    "convert a out --calib rows.tsv --split dev",
    "convert a out --calib rows.tsv --text-pair-column b",
    "convert a out --calib rows.tsv --percentile 0",
    "convert a out --calib rows.tsv --percentile nan",
    "convert a out --calib rows.tsv --percentile 99 --method max",
    "convert a out --calib rows.tsv --max-length 3",
    "convert a out --calib rows.tsv --refine -1",
    "convert a out --export onnxruntime --export tensorrt",
    "convert a out --export tpu",
    "eval a",
    "eval --data rows.tsv",
    "eval a --data rows.tsv --null-threshold 1",
    "eval a --data rows.tsv --null-threshold nan --no-answer",
    "eval a --data rows.tsv --max-drop -1",
    "eval a --data rows.tsv --max-drop nan",
    "eval a --data rows.tsv --engine tpu",
    "export a out --shape 8x",
    "export a out --opset 16",
    "export a out --capability SM89",
    "export a out --build",
    "export a out --build --target openvino",
    "lint a.onnx",
    "lint a.onnx --target tensorrt --shape 8x8",
    "lint a.onnx --target tensorrt --capability SM89",
    "lint a.onnx --target onnxruntime --build",
    "lint a.onnx --target tensorrt --build --shape 8",
    "optimize a out",
    "optimize a out --data rows.tsv --time soon",
    "optimize a out --data rows.tsv --max-drop nan",
    "sensitivity a --data rows.tsv --out b.json",
    "sensitivity a --data rows.tsv --max-drop inf",
    "sensitivity a --data rows.tsv --max-drop nan",
    "train a --data rows.tsv",
    "train a out --data rows.tsv --epochs 0",
    "train a out --data rows.tsv --epochs nan",
    "train a out --data rows.tsv --epochs inf",
    "train a out --data rows.tsv --lr nan",
    "train a out --data rows.tsv --warmup 1",
    "train a out --data rows.tsv --temperature 2",
    "train a out --data rows.tsv --teacher a",
    "train a out --data rows.tsv --distill --temperature nan",
    "train a out --data rows.tsv --distill --labels nan",
    "train a out --data rows.tsv --distill --attentions inf",
    "train a out --data rows.tsv --weight-decay -1",
]


@pytest.mark.parametrize(
    "line",
    [
        *WRONG,
        *(f"{line} {more}" for line in LINES.values() for more in ("--no-such-option", "-x")),
    ],
)
def test_wrong_usage_exits_with_2(line: str, here: Path) -> None:
    Path("rows.tsv").write_text("text\tlabel\nthe cat\t0\n")
    result = invoke(*line.split(" "))
    assert result.exit_code == 2, result.output
    assert "\nError: " in result.stderr
    assert sorted(os.listdir()) == ["rows.tsv"]


def test_a_misspelled_command_is_told_the_right_one(here: Path) -> None:
    result = invoke("evla", "ckpt")
    assert result.exit_code == 2
    assert "No such command 'evla'. Did you mean 'eval'?" in result.stderr
    assert "Did you mean" not in invoke("nothing").stderr
    assert "No such option" in invoke("--evaal").stderr


def test_every_number_has_a_range_that_is_checked(here: Path) -> None:
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        for option in command.params:
            if not isinstance(option, click.Option) or option.is_flag:
                continue
            if isinstance(option.type, click.types.IntParamType | click.types.FloatParamType):
                for value in ("x", "nan", "inf" if option.name == "null_threshold" else "-7"):
                    result = invoke(*LINES[name].split(), option.opts[0], value)
                    assert result.exit_code == 2, (name, option.opts, value, result.output)
