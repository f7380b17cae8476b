"""What tests of the commands share: tiny checkpoints and data, made once and only read."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
from checkpoints import SENTENCES, write_checkpoint, write_tokenizer
from click.testing import CliRunner, Result
from commands import invoke

from qdqpatch.calibration import Statistics
from qdqpatch.cli import main
from qdqpatch.listening import CalibrationListener


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a classifier, `float`, calibrated as `int8`; with `texts.txt` and `rows.tsv`."""
    folder = tmp_path_factory.mktemp("shelf")
    models.build("BertForSequenceClassification").save_pretrained(folder / "float")
    write_tokenizer(folder / "float")
    (folder / "texts.txt").write_text(SENTENCES, encoding="utf-8")
    rows = "".join(
        f"the cat {word}\t{number % 3}\n" for number, word in enumerate(["sat", "on", "a", "mat"] * 3)
    )
    (folder / "rows.tsv").write_text(f"text\tlabel\n{rows}", encoding="utf-8")
    result = invoke("convert", folder / "float", folder / "int8", "--calib", folder / "texts.txt", "-q")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="session")
def float_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float BERT with a masked-LM head and its tokenizer; to be read only."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "float")


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """A file of texts."""
    file = tmp_path / "sentences.txt"
    file.write_text(SENTENCES, encoding="utf-8")
    return file


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command line in an empty folder, inside this process."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `ptq` is called with, the batches read twice as lists; nothing is run."""
    calls: dict[str, Any] = {}

    def record(model: object, batches: Any, listener: CalibrationListener, **options: object) -> None:
        calls.update(options, batches=list(batches), again=list(batches), count=len(batches))
        listener.collected(Statistics({}))

    monkeypatch.setattr(sys.modules["qdqpatch.calibration.ptq"], "ptq", record)
    return calls
