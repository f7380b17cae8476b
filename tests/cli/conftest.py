"""What tests of the commands share: tiny checkpoints and data, made once and only read."""

from pathlib import Path

import models
import pytest
from checkpoints import SENTENCES, write_tokenizer
from commands import invoke


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
