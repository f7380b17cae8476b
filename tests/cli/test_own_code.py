"""Checkpoints with code of their own: run where they are trusted, and carried along with what is written."""

import json
import sys
from pathlib import Path

import models
import pytest
from checkpoints import write_tokenizer
from commands import assert_fails, invoke
from tiny_tasks import distinct_texts
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from qdqpatch.checkpoint.source import open_checkpoint
from qdqpatch.errors import CheckpointError, QuantizationWarning
from qdqpatch.patching.apply import is_quantized

TRUST = "--trust-remote-code"
CODE = """
from transformers import BertConfig, BertForSequenceClassification, BertModel


class MyConfig(BertConfig):
    model_type = "mine"


class MyModel(BertModel):
    config_class = MyConfig


class MyClassifier(BertForSequenceClassification):
    config_class = MyConfig
"""
TOKENIZER = """
from transformers import BertTokenizer


class MyTokenizer(BertTokenizer):
    pass
"""
PLACES = {
    "AutoConfig": "mine.MyConfig",
    "AutoModel": "mine.MyModel",
    "AutoModelForSequenceClassification": "mine.MyClassifier",
}


@pytest.fixture
def own(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `own` with a classifier whose class transformers does not have, and one with texts."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(here / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    models.float_model("BertForSequenceClassification").save_pretrained("own")
    write_tokenizer(Path("own"))
    config = json.loads(Path("own/config.json").read_text())
    config |= {"model_type": "mine", "architectures": ["MyClassifier"], "auto_map": PLACES}
    Path("own/config.json").write_text(json.dumps(config))
    Path("own/mine.py").write_text(CODE)
    settings = json.loads(Path("own/tokenizer_config.json").read_text())
    named = {"auto_map": {"AutoTokenizer": [None, "words.MyTokenizer"]}, "tokenizer_class": "MyTokenizer"}
    Path("own/tokenizer_config.json").write_text(json.dumps(settings | named))
    Path("own/words.py").write_text(TOKENIZER)
    Path("texts.txt").write_text("\n".join(distinct_texts(8)))
    return Path("own")


def test_it_is_run_where_it_is_trusted(own: Path) -> None:
    arguments = ("convert", own, "out", "--calib", "texts.txt", "--method", "max", "--max-length", 8)
    assert_fails(invoke(*arguments), "is run only where you trust it: --trust-remote-code.")
    result = invoke(*arguments, TRUST)
    assert result.exit_code == 0, result.output
    assert Path("out/mine.py").read_text() == CODE
    assert type(AutoTokenizer.from_pretrained("out", trust_remote_code=True)).__name__ == "MyTokenizer"
    assert_fails(invoke("inspect", "out"), "is run only where you trust it: --trust-remote-code.")
    result = invoke("inspect", "out", TRUST)
    assert "MyClassifier: 20 operations quantized" in result.stdout
    assert "40 of its 40 quantizers have a range" in result.stdout
    with pytest.warns(QuantizationWarning, match="There are no rules for mine"):
        model = AutoModelForSequenceClassification.from_pretrained("out", trust_remote_code=True)
    assert (type(model).__name__, is_quantized(model)) == ("MyClassifier", True)
    name = "BertForSequenceClassification"
    close = models.outputs(model, name)["logits"] - models.outputs(models.float_model(name), name)["logits"]
    assert 0 < close.abs().max() < 0.1


def test_its_task_is_that_of_the_head_that_it_names(own: Path) -> None:
    config = json.loads((own / "config.json").read_text())
    for saved, task, found in (
        ("MyClassifier", None, "MyClassifier"),
        ("MyClassifier", "feature-extraction", "MyModel"),
        ("BertForSequenceClassification", None, "BertForSequenceClassification"),
    ):
        (own / "config.json").write_text(json.dumps(config | {"architectures": [saved]}))
        result = invoke("inspect", own, TRUST, *(() if task is None else ("--task", task)))
        assert f"{found}: 20 operations quantized" in result.stdout, result.output
    (own / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"trust it: AutoModel\.from_pretrained\('own', trust_remote"):
        open_checkpoint("own")
    result = invoke("eval", own, "--data", "texts.txt", TRUST)
    assert_fails(result, "texts.txt has no column of labels by a usual name")
