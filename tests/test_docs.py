"""What the documentation shows runs: the README's Python and commands, and the docstrings' examples."""

import doctest
import importlib
import json
import pkgutil
import re
import shlex
import shutil
from pathlib import Path

import models
import pytest
import torch
import transformers
from checkpoints import SENTENCES, write_checkpoint, write_tokenizer
from click.testing import CliRunner

import qdqpatch
from qdqpatch.calibration import collect
from qdqpatch.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = [module.name for module in pkgutil.walk_packages(qdqpatch.__path__, "qdqpatch.")]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the documentation takes for granted: checkpoints and a text file."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(Path("ckpt"))
    Path("sentences.txt").write_text(SENTENCES, encoding="utf-8")
    shutil.copytree(ROOT / "tests/reference/checkpoints/QDQBertForMaskedLM", "old-qdqbert")
    return tmp_path


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")  # a GPU would want it
def test_readme_python(folder: Path) -> None:
    assert len(blocks("python")) == 8
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    written = {
        "int8",
        "int8-attention",
        "trained-here",
        "modern",
        "for-transformers-4.40.2",
        "statistics.safetensors",
        "onnxruntime",
    }
    assert written <= {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_readme_commands(folder: Path) -> None:
    lines = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
    commands = [shlex.split(line) for line in lines]
    ours = [command[1:] for command in commands if command[0] == "qdqpatch"]
    assert len(ours) == 16
    for command in ours:
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, (command, result.output)
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {command[1] for command in commands if command[0] == "make"} <= targets


@pytest.mark.slow
def test_the_readmes_example_of_question_answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    models.build("BertForQuestionAnswering", max_position_embeddings=128).save_pretrained("bert")
    write_tokenizer(Path("bert"))
    context = "the cat sat on the mat and a dog sat on the cat . " * 8
    answers = [{"text": "mat", "answer_start": context.index("mat")}]
    questions = [{"id": str(each), "question": "the dog sat on", "answers": answers} for each in range(6)]
    layout = {"data": [{"paragraphs": [{"context": context, "qas": questions}]}]}
    for name in ("train.json", "dev.json"):
        Path(name).write_text(json.dumps(layout))
    (block,) = blocks("shell")
    for line in block.splitlines():
        command = shlex.split(line.removeprefix("$ "))
        assert command[0] == "qdqpatch"
        result = CliRunner().invoke(main, command[1:])
        assert result.exit_code == 0, (command, result.output)
    rows = re.findall(r"^ (bert|int8|qat|engine) ", result.output, re.MULTILINE)
    assert rows == ["bert", "int8", "qat", "engine", "engine"]  # an ONNX file runs in two engines


def test_readme_names_what_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str, folder: Path) -> None:
    module = importlib.import_module(name)
    names = {
        "AutoModelForMaskedLM": transformers.AutoModelForMaskedLM,
        "batches": [{"input_ids": torch.tensor([[2, 6, 8, 3]])}],
        "calibrate": qdqpatch.calibrate,
        "collect": collect,
        "model": qdqpatch.quantize(transformers.AutoModelForMaskedLM.from_pretrained("ckpt")),
    }
    assert doctest.testmod(module, extraglobs=names).failed == 0


def test_some_docstrings_have_examples() -> None:
    finder = doctest.DocTestFinder()
    tests = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(tests) >= 3


def test_public_names_are_documented() -> None:
    for name in qdqpatch.__all__:
        if name != "__version__":
            assert getattr(qdqpatch, name).__doc__, name


def test_the_version_is_that_of_the_project() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{qdqpatch.__version__}"' in pyproject
