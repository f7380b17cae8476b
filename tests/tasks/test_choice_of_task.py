from pathlib import Path

import models
import pytest
from checkpoints import write_tokenizer
from transformers import BertConfig

from qdqpatch.checkpoint.tokenizer import load_tokenizer
from qdqpatch.choices import AUTO_CLASSES, MEASURED_TASKS
from qdqpatch.errors import ConfigError
from qdqpatch.tasks import TASKS, make_task, task_of

COVERED = {
    "BertForSequenceClassification": "text-classification",
    "BertForTokenClassification": "token-classification",
    "BertForQuestionAnswering": "question-answering",
    "BertForMultipleChoice": "multiple-choice",
    "BertForMaskedLM": "fill-mask",
    "ViTForImageClassification": "image-classification",
    "BertModel": "feature-extraction",
    "RobertaModel": "feature-extraction",
    "ElectraForMaskedLM": "fill-mask",
}
KNOWN = (
    "next-sentence prediction, text generation and pretraining are not covered. Name one that is with task: "
    "text-classification, token-classification, question-answering, multiple-choice, fill-mask, "
    "feature-extraction, image-classification."
)


def test_tasks_are_named_as_checkpoints_are_loaded() -> None:
    assert TASKS.keys() <= AUTO_CLASSES.keys()
    assert tuple(TASKS) == MEASURED_TASKS
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}


@pytest.mark.parametrize(("architecture", "name"), COVERED.items())
def test_head_tells_the_task(architecture: str, name: str) -> None:
    assert task_of(BertConfig(architectures=[architecture])) is TASKS[name]


def test_a_class_of_its_own_has_the_task_that_it_is_named_for() -> None:
    config = BertConfig(architectures=["Mine"])
    config.auto_map = {"AutoModel": "mine.Base", "AutoModelForMaskedLM": "mine.Mine"}
    assert task_of(config) is TASKS["fill-mask"]
    config.architectures = ["BertForTokenClassification"]
    assert task_of(config) is TASKS["token-classification"]


@pytest.mark.parametrize("architecture", sorted((models.HEADS | models.CHANGES).keys() - COVERED))
def test_heads_without_a_task(architecture: str) -> None:
    architecture = architecture.split()[0]
    with pytest.raises(ConfigError) as caught:
        task_of(BertConfig(architectures=[architecture]))
    assert str(caught.value) == f"No task here is that of {architecture}; {KNOWN}"


def test_config_without_a_head() -> None:
    with pytest.raises(ConfigError) as caught:
        task_of(BertConfig())
    problem = "What task the model is for is not clear, because its config names no class"
    assert str(caught.value) == f"{problem}; {KNOWN}"


def test_a_task_is_made_with_its_options_and_no_longer_than_the_model(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(write_tokenizer(tmp_path)))
    config = BertConfig(architectures=["BertForQuestionAnswering"], max_position_embeddings=60)
    task = make_task(None, tokenizer, config, None, {"stride": 5, "longest_answer": 2})
    assert (task.name, task.max_length, task.stride, task.longest_answer) == ("question-answering", 60, 5, 2)
    assert make_task("text-classification", tokenizer, config, 20).max_length == 20
    with pytest.raises(ConfigError) as caught:
        make_task("fill-mask", tokenizer, config, options={"stride": 5})
    assert str(caught.value) == "stride is for question-answering, not for fill-mask."
