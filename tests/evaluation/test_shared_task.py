"""What models that are compared share, and what keeps them from being compared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import models
import pytest
from evaluations import HEAD, write
from exported import write_onnx

from qdqpatch.errors import CheckpointError, ConfigError
from qdqpatch.evaluation.shared_task import settle

Make = Callable[..., str]


@pytest.fixture
def make(here: Path) -> Make:
    """Write a classifier whose config has the changes."""
    return lambda folder, **changes: write(folder, models.build(HEAD, **changes))


def names(*labels: str) -> dict[str, Any]:
    return {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}


def error(*folders: str, task: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        settle(folders, task)
    return str(caught.value)


def test_the_task_is_that_of_the_head(make: Make) -> None:
    make("a", **names("no", "yes", "maybe"))
    settled = settle(["a", "a"])
    assert settled.name == "text-classification"
    assert settled.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert settled.tokenizer("the cat")["input_ids"] == [2, 10, 6, 3]


def test_config_and_tokenizer_are_the_first_ones_that_are_there(here: Path) -> None:
    write_onnx(here / "bare.onnx")
    (here / "exported").mkdir()
    file = write_onnx(here / "exported/model.onnx")
    write("named", models.build(HEAD, **names("no", "yes", "maybe")), tokenizer=False)
    write("plain")
    settled = settle(["bare.onnx", "named", "plain"])
    assert settled.config.id2label[0] == "no"
    assert len(settled.tokenizer) == len(checkpoints.WORDS)
    models.config(HEAD).save_pretrained("exported")
    assert settle([str(file), "plain"], "text-classification").config.id2label[0] == "LABEL_0"


def test_a_bare_file_needs_another_model(here: Path) -> None:
    write_onnx(here / "bare.onnx")
    advice = "Name a model that has one as well, such as the checkpoint that the file was exported from."
    assert error("bare.onnx") == f"There is no config.json beside bare.onnx. {advice}"
    write("untold", tokenizer=False)
    lacking = "There is no tokenizer (tokenizer.json, vocab.txt) beside bare.onnx or untold."
    assert error("bare.onnx", "untold") == f"{lacking} {advice}"


def test_sequences_are_as_long_as_every_model_takes(make: Make) -> None:
    make("long", max_position_embeddings=300)
    make("short", max_position_embeddings=20)
    for folders, asked, expected in (
        (["long"], None, 128),
        (["long"], 200, 200),
        (["long"], 400, 300),
        (["long", "short"], None, 20),
        (["long", "short"], 16, 16),
    ):
        assert settle(folders, max_length=asked).max_length == expected


def test_another_number_of_labels(make: Make) -> None:
    make("three")
    make("two", num_labels=2)
    assert error("three", "two") == "three has 3 labels and two has 2: they cannot be compared."


def test_labels_in_another_order(make: Make) -> None:
    make("plain")
    make("first", **names("no", "yes", "maybe"))
    make("same", **names("No", "YES", "Maybe"))
    make("swapped", **names("no", "maybe", "yes"))
    settle(["first", "same", "plain"])  # LABEL_0 is no name
    problem = "Label 1 is 'yes' in first and 'maybe' in swapped (id2label in config.json)"
    assert error("first", "same", "swapped") == f"{problem}: they cannot be compared."


def test_labels_count_for_tasks_that_have_them_alone(here: Path) -> None:
    write("three", models.build("BertForMaskedLM", num_labels=3))
    write("two", models.build("BertForMaskedLM", num_labels=2))
    assert settle(["two", "three"]).name == "fill-mask"


def test_another_vocabulary(make: Make) -> None:
    make("a")
    make("b")
    words = [*checkpoints.SPECIAL, "cat", "a", *checkpoints.WORDS[7:]]
    Path("b/vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    problem = "b has another vocabulary than a, and all models get the same tokens"
    assert error("a", "b") == f"{problem}. Name models of one vocabulary."


def test_another_head(make: Make) -> None:
    make("a")
    write("masked", models.float_model("BertForMaskedLM"))
    assert error("a", "masked") == "masked is a model for fill-mask, not for text-classification."
    assert error("a", task="fill-mask") == "a is a model for text-classification, not for fill-mask."
    assert settle(["a", "masked"], "feature-extraction").name == "feature-extraction"


def test_a_head_of_no_task(here: Path) -> None:
    write("pretraining", models.float_model("BertForPreTraining"))
    assert "BertForPreTraining" in error("pretraining")
    assert settle(["pretraining"], "fill-mask").name == "fill-mask"


def test_a_config_that_cannot_be_read(make: Make) -> None:
    Path(make("a"), "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"^Cannot read the config of a: "):
        settle(["a"])
