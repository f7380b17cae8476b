import models
import pytest
from transformers import BertConfig

from qdqpatch.checkpoint.source import TASKS as AUTO_CLASSES
from qdqpatch.errors import ConfigError
from qdqpatch.tasks import TASKS, task_of

COVERED = {
    "BertForSequenceClassification": "text-classification",
    "BertForTokenClassification": "token-classification",
    "BertForQuestionAnswering": "question-answering",
    "BertForMultipleChoice": "multiple-choice",
    "BertForMaskedLM": "fill-mask",
    "BertModel": "feature-extraction",
    "RobertaModel": "feature-extraction",
    "ElectraForMaskedLM": "fill-mask",
}
KNOWN = (
    "next-sentence prediction, text generation and pretraining are not covered. Name one that is with task "
    "(--task): text-classification, token-classification, question-answering, multiple-choice, fill-mask, "
    "feature-extraction."
)


def test_tasks_are_named_as_checkpoints_are_loaded() -> None:
    assert TASKS.keys() <= AUTO_CLASSES.keys()
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}


@pytest.mark.parametrize(("architecture", "name"), COVERED.items())
def test_head_tells_the_task(architecture: str, name: str) -> None:
    assert task_of(BertConfig(architectures=[architecture])) is TASKS[name]


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
