"""What starting costs: help imports nothing heavy, `import qdqpatch` nothing at all, a file no torch."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from benches import file_contender
from exported import write_onnx

from qdqpatch.cli import COMMANDS

HEAVY = {
    "torch", "transformers", "numpy", "scipy", "pytorch_quantization", "safetensors", "datasets", "onnx",
    "onnx_ir", "onnxruntime", "openvino", "matplotlib", "jinja2", "rich",
}  # fmt: skip


def imported(code: str) -> set[str]:
    """Run Python code in a process of its own, and return which of the heavy packages it imported."""
    code = f"import sys\n{code}\nprint(*{HEAVY!r} & sys.modules.keys(), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert imported("import qdqpatch; qdqpatch.__version__; dir(qdqpatch); qdqpatch.QdqError") == set()


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(argument: str) -> None:
    assert imported(f"from qdqpatch.cli import main; main([{argument!r}], standalone_mode=False)") == set()


def test_help_of_no_command_imports_anything_heavy() -> None:
    lines = [f"main([{name!r}, '--help'], standalone_mode=False)" for name in COMMANDS]
    assert imported("\n".join(["from qdqpatch.cli import main", *lines])) == set()


def test_wrong_usage_imports_nothing_heavy() -> None:
    code = "from click.testing import CliRunner; from qdqpatch.cli import main\n"
    code += "assert CliRunner().invoke(main, ['convert', 'a', 'b', '--task', 'cooking']).exit_code == 2"
    assert imported(code) == set()


def test_an_exported_file_is_measured_alone_without_torch(here: Path) -> None:
    contender = dataclasses.asdict(file_contender(write_onnx(here / "a.onnx")))
    job = json.dumps({"contender": contender, "threads": 1, "shape": "1x4", "trusted": False})
    code = f"from qdqpatch.bench.process import main; sys.argv[1:] = [{job!r}]; main()"
    assert imported(code) <= {"numpy", "onnx", "onnx_ir", "onnxruntime"}
