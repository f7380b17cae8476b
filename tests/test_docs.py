"""What the documentation shows runs: the README's Python and commands, and the docstrings' examples."""

import doctest
import importlib
import pkgutil
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from checkpoints import SENTENCES, write_checkpoint
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


def test_readme_python(folder: Path) -> None:
    assert len(blocks("python")) == 6
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    written = {
        "int8",
        "int8-attention",
        "modern",
        "for-transformers-4.40.2",
        "statistics.safetensors",
        "onnxruntime",
    }
    assert written <= {path.name for path in folder.iterdir()}


def test_readme_commands(folder: Path) -> None:
    lines = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
    commands = [shlex.split(line) for line in lines]
    ours = [command[1:] for command in commands if command[0] == "qdqpatch"]
    assert len(ours) == 14
    for command in ours:
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, (command, result.output)
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {command[1] for command in commands if command[0] == "make"} <= targets


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
