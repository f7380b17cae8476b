"""A message names an argument in Python and an option on the command line, never both."""

import ast
import re
from pathlib import Path

import click

import qdqpatch
from qdqpatch.cli import COMMANDS, main
from qdqpatch.errors import no_range
from qdqpatch.spelling import OPTIONS, counted, form, on_command_line, spelled
from qdqpatch.training.folder import OPTIONS as OF_JOBS

PACKAGE = Path(qdqpatch.__file__).parent

AN_OPTION = re.compile(r"(^|[ (`'])--[a-z]")
A_COMMAND = re.compile(r"qdqpatch (convert|export|inspect)\b")


def test_each_reader_gets_one_spelling() -> None:
    assert [spelled("max_length"), spelled("label"), spelled("check=False", "--no-check")] == [
        "max_length",
        "label",
        "check=False",
    ]
    with on_command_line():
        assert [spelled("max_length"), spelled("label"), spelled("check=False", "--no-check")] == [
            "--max-length",
            "--label-column",
            "--no-check",
        ]
        assert no_range(["a"]).endswith("first: qdqpatch convert CKPT OUT --calib FILE.")
    assert no_range(["a"]).endswith("first: qdqpatch.calibrate(model, batches).")


def test_words_agree_with_numbers() -> None:
    assert [counted(count, "text") for count in (0, 1, 2)] == ["0 texts", "1 text", "2 texts"]
    assert [counted(count, "batch", "batches") for count in (1, 8)] == ["1 batch", "8 batches"]
    assert [form(count, "stays", "stay") for count in (1, 8)] == ["stays", "stay"]


def test_the_options_are_there() -> None:
    there = set()
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        there |= {option for parameter in command.params for option in parameter.opts}
    named = {
        word for text in (*OPTIONS.values(), *OF_JOBS.values()) for word in re.findall("--[a-z-]+", text)
    }
    assert named <= there


def test_no_other_message_names_an_option() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "cli" or (path.parent.name == "rules" and path.parent.parent.name == "lint"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        allowed = {
            id(part)
            for call in calls
            if ast.unparse(call.func) == "spelled"
            for argument in call.args[1:]
            for part in ast.walk(argument)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr):
                allowed.add(id(node.value))  # what documents
            if isinstance(node, ast.Assign | ast.AnnAssign) and "OPTIONS" in ast.unparse(node):
                allowed |= {id(part) for part in ast.walk(node)}
        found += [
            f"{path.name}:{node.lineno}: {node.value}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in allowed
            if AN_OPTION.search(node.value) and not A_COMMAND.search(node.value)
        ]
    assert not found
