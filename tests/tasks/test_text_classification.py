import json

import pytest
import tiny_tasks
import torch
from texts import Write

from qdqpatch.evaluation.predicting import predict, torch_run
from qdqpatch.tasks.base import Columns, DataSource
from qdqpatch.tasks.text_classification import LabelledText, TextClassification

NAMES = {0: "bad", 1: "good", 2: "odd"}
TEXTS = ["the cat", "a dog sat on the mat", "mat", "the cat and the dogs ."]


@pytest.fixture(scope="module")
def task() -> TextClassification:
    return tiny_tasks.make(TextClassification, "BertForSequenceClassification", id2label=NAMES)[0]


def test_from_file_to_accuracy(write: Write) -> None:
    task, model = tiny_tasks.make(TextClassification, "BertForSequenceClassification")
    best = [int(tiny_tasks.alone(model, text)["logits"].argmax()) for text in TEXTS]
    best[2] = (best[2] + 1) % 3
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(TEXTS, best, strict=True)]
    examples = task.read(DataSource(str(write("data.jsonl", "\n".join(lines)))))
    features = task.features(examples)
    steps: list[tuple[int, int]] = []

    outputs = predict(torch_run(model), task, features, batch_size=3, step=lambda *done: steps.append(done))

    assert steps == [(3, 4), (4, 4)]
    for output, text in zip(outputs, TEXTS, strict=True):  # in the data's order, not in that of lengths
        # Padding changes the order of sums, which is a few last bits of fp32.
        expected = tiny_tasks.alone(model, text)["logits"][0]
        torch.testing.assert_close(torch.tensor(output["logits"]), expected, atol=1e-5, rtol=0)
    (accuracy,) = task.score(examples, features, outputs)
    assert (accuracy.name, accuracy.value) == ("accuracy", 75)


def test_reads_names_of_labels_and_pairs(task: TextClassification, write: Write) -> None:
    data = write("pairs.tsv", "sentence1\tsentence2\tgold_label\na cat\ta dog\tgood\nthe mat\tsat\tBAD\n")
    assert task.read(DataSource(str(data))) == [
        LabelledText("a cat", "a dog", 1),
        LabelledText("the mat", "sat", 0),
    ]
    columns = Columns("sentence2", None, "gold_label")
    assert task.read(DataSource(str(data), columns))[0] == LabelledText("a dog", None, 1)
    assert task.read(DataSource(str(data)), labelled=False)[0] == LabelledText("a cat", "a dog", None)


def test_training_features_have_the_label_and_others_have_none(task: TextClassification) -> None:
    examples = [LabelledText("a cat", "a dog", 2), LabelledText("the mat and", "sat", 0)]
    training, plain = task.features(examples, training=True), task.features(examples)
    assert training == [row | {"labels": label} for row, label in zip(plain, (2, 0), strict=True)]
    batch = task.collate(training)
    assert batch["labels"].tolist() == [2, 0]
    assert batch["input_ids"].tolist() == [[2, 5, 6, 3, 5, 7, 3], [2, 10, 11, 12, 3, 8, 3]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]]


def test_texts_are_cut_at_max_length() -> None:
    task, _ = tiny_tasks.make(TextClassification, "BertForSequenceClassification", 4)
    assert task.features([LabelledText("the cat sat", None, 0)])[0]["input_ids"] == [2, 10, 6, 3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "unknown.csv",
            "text,label\nthe cat,good\na dog,fine\n",
            "unknown.csv, line 3, has the label 'fine'; the model's are 0 (bad), 1 (good), 2 (odd).",
        ),
        (
            "range.csv",
            "text,label\nthe cat,3\n",
            "range.csv, line 2, has the label '3'; the model's are 0 (bad), 1 (good), 2 (odd).",
        ),
        (
            "hidden.tsv",
            "text\tlabel\nthe cat\t-1\n",
            "hidden.tsv, line 2, has the label '-1'; the model's are 0 (bad), 1 (good), 2 (odd).",
        ),
        (
            "unlabelled.csv",
            "text,source\nthe cat,web\n",
            "unlabelled.csv has no column of labels by a usual name (label, labels, gold_label, target, "
            "class); it has text, source. Name it with label.",
        ),
        (
            "unclear.csv",
            "first,second,label\nthe cat,a dog,1\n",
            "unclear.csv: which column holds the texts is not clear, for it has first, second, label. Name "
            "it with text_column.",
        ),
        (
            "lost.jsonl",
            '{"text": "the cat", "label": 1}\n{"text": "the cat"}\n',
            "lost.jsonl, line 2, has no field 'label'.",
        ),
        (
            "blank.jsonl",
            '{"text": "the cat", "label": 1}\n\n{"text": " ", "label": 1}\n',
            "blank.jsonl, line 3, has nothing in 'text'.",
        ),
        (
            "number.jsonl",
            '{"text": 5, "label": 1}\n',
            "number.jsonl, line 1, has int in 'text', which is no text.",
        ),
    ],
)
def test_bad_rows(task: TextClassification, write: Write, name: str, content: str, message: str) -> None:
    assert tiny_tasks.error_of(task, write(name, content)) == message


def test_named_columns_must_be_there(task: TextClassification, write: Write) -> None:
    data = write("data.csv", "text,label\nthe cat,1\n")
    message = "data.csv has no column 'words'; it has text, label."
    assert tiny_tasks.error_of(task, data, "words") == message
    assert tiny_tasks.error_of(task, data, "text", "words") == message
    assert tiny_tasks.error_of(task, data, "text", None, "words") == message
