import json

import pytest
import tiny_tasks
import torch
from texts import Write

from qdqpatch.evaluation.predicting import predict, torch_run
from qdqpatch.tasks.base import Columns, DataSource
from qdqpatch.tasks.multiple_choice import Choice, MultipleChoice

HEAD = "BertForMultipleChoice"
EXAMPLES = [
    Choice("the cat", ("sat on the mat", "and", "a dog"), 0),
    Choice("a dog", ("and", "cats", "sat"), 2),
    Choice("the mat and the cat sat on the mat", (".", "and a dog", ","), 1),
]


@pytest.fixture(scope="module")
def task() -> MultipleChoice:
    return tiny_tasks.make(MultipleChoice, HEAD)[0]


def score_alone(model: torch.nn.Module, prompt: str, ending: str) -> float:
    encoded = tiny_tasks.tokenizer()(prompt, ending, return_tensors="pt")
    with torch.no_grad():
        return float(model(**{name: tensor[None] for name, tensor in encoded.items()}).logits)


def test_from_file_to_accuracy(write: Write) -> None:
    task, model = tiny_tasks.make(MultipleChoice, HEAD)
    alone = [
        [score_alone(model, example.prompt, ending) for ending in example.endings] for example in EXAMPLES
    ]
    best = [scores.index(max(scores)) for scores in alone]
    best[1] = (best[1] + 1) % 3
    lines = [
        "\t".join([str(label), *example.endings, example.prompt])
        for example, label in zip(EXAMPLES, best, strict=True)
    ]
    header = "label\tending0\tending1\tending2\tprompt"
    examples = task.read(DataSource(str(write("dev.tsv.gz", "\n".join([header, *lines])))))
    features = task.features(examples)
    assert [task.length(feature) for feature in features] == [9, 7, 15]

    outputs = predict(torch_run(model), task, features, batch_size=2)

    for output, expected in zip(outputs, alone, strict=True):
        # Padding changes the order of sums, which is a few last bits of fp32.
        torch.testing.assert_close(output["logits"].tolist(), expected, atol=1e-5, rtol=0)
    (accuracy,) = task.score(examples, features, outputs)
    assert accuracy.name == "accuracy"
    assert accuracy.value == pytest.approx(200 / 3, rel=1e-12)


def test_batches_have_a_row_for_each_ending(task: MultipleChoice) -> None:
    batch = task.collate(task.features(EXAMPLES[:2], training=True))
    assert batch["labels"].tolist() == [0, 2]
    assert batch["input_ids"].tolist() == [
        [[2, 10, 6, 3, 8, 9, 10, 11, 3], [2, 10, 6, 3, 12, 3, 0, 0, 0], [2, 10, 6, 3, 5, 7, 3, 0, 0]],
        [[2, 5, 7, 3, 12, 3, 0, 0, 0], [2, 5, 7, 3, 6, 13, 3, 0, 0], [2, 5, 7, 3, 8, 3, 0, 0, 0]],
    ]
    assert torch.equal(batch["attention_mask"], (batch["input_ids"] != 0).long())
    assert batch["token_type_ids"][0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert "labels" not in task.features(EXAMPLES)[0]


def test_a_batch_trains_the_model() -> None:
    task, model = tiny_tasks.make(MultipleChoice, HEAD)
    batch = task.collate(task.features(EXAMPLES, training=True))
    expected = [
        -torch.tensor([score_alone(model, example.prompt, ending) for ending in example.endings])
        .log_softmax(0)[example.label]
        .item()
        for example in EXAMPLES
    ]
    assert model(**batch).loss.item() == pytest.approx(sum(expected) / 3, rel=1e-5)  # fp32


def test_prompts_and_endings_are_cut_at_max_length() -> None:
    task, _ = tiny_tasks.make(MultipleChoice, HEAD, 8)
    assert all(len(ids) <= 8 for feature in task.features(EXAMPLES) for ids in feature["input_ids"])


NONE = (
    "has no endings to choose from by usual names: columns such as ending0, ending1, ... with consecutive "
    "numbers, or a list in endings, choices, options."
)


@pytest.mark.parametrize(
    "row",
    [
        {
            "question": "a cat",
            "Choice 0": "sat",
            "Choice 1": "and",
            "label": "1",
            "source1": "b",
            "source2": "c",
        },
        {"startphrase": "a cat", "option1": "sat", "option2": "and", "label": 1},
        {"ctx": "a cat", "context": "x", "endings": ["sat", "and"], "gold_label": 1},
        {"prompt": "a cat", "choices": [" sat", "and "], "label": 1, "part1": "x", "part2": "y"},
        {"prompt": "a cat", "B0": "x", "C1": "x", "C3": "x", "part_0": "sat", "part_1": "and", "label": 1},
    ],
)
def test_finds_usual_columns(task: MultipleChoice, write: Write, row: dict[str, object]) -> None:
    data = write("data.jsonl", json.dumps(row))
    assert task.read(DataSource(str(data))) == [Choice("a cat", ("sat", "and"), 1)]


def test_takes_named_columns(task: MultipleChoice, write: Write) -> None:
    row = {"prompt": "x", "answer1": "a cat", "ending0": "sat", "ending1": "and", "right": 1, "label": 0}
    data = str(write("data.jsonl", json.dumps(row)))
    expected = Choice("a cat", ("sat", "and"), 1)
    assert task.read(DataSource(data, Columns("answer1", None, "right"))) == [expected]
    unlabelled = Choice("a cat", ("sat", "and"), None)
    assert task.read(DataSource(data, Columns("answer1")), labelled=False) == [unlabelled]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "range.csv",
            "prompt,choice1,choice2,label\na,b,c,1\na,b,c,2\n",
            "range.csv, line 3, has the label '2'; of 2 endings, it is a number from 0 to 1.",
        ),
        (
            "letter.csv",
            "prompt,choice1,choice2,label\na,b,c,B\n",
            "letter.csv, line 2, has the label 'B'; of 2 endings, it is a number from 0 to 1.",
        ),
        (
            "blank.csv",
            "prompt,choice1,choice2,label\na,b, ,0\n",
            "blank.csv, line 2, has nothing in 'choice2'.",
        ),
        (
            "empty.csv",
            "prompt,choice1,choice2,label\n,b,c,0\n",
            "empty.csv, line 2, has nothing in 'prompt'.",
        ),
        (
            "gap.csv",
            "prompt,choice1,choice3,label\na,b,c,0\n",
            f"gap.csv {NONE} It has choice1, choice3.",
        ),
        (
            "two.csv",
            "prompt,a0,a1,b0,b1,label\na,b,c,d,e,0\n",
            f"two.csv {NONE} It has a0, a1, b0, b1.",
        ),
        (
            "text.csv",
            "text,choice1,choice2,label\na,b,c,0\n",
            "text.csv has no column of prompts by a usual name (prompt, question, startphrase, ctx, "
            "context); it has text, choice1, choice2, label. Name it with text.",
        ),
        (
            "answer.csv",
            "prompt,choice1,choice2,answer\na,b,c,0\n",
            "answer.csv has no column of labels by a usual name (label, labels, gold_label, target, class); "
            "it has prompt, choice1, choice2, answer. Name it with label.",
        ),
        (
            "more.jsonl",
            '{"prompt": "a", "choices": ["b", "c"], "label": 0}\n'
            '{"prompt": "a", "choices": ["b"], "label": 0}',
            "more.jsonl, line 2, has 1 endings, where 2 are needed.",
        ),
        (
            "one.jsonl",
            '{"prompt": "a", "choices": ["b"], "label": 0}',
            "one.jsonl, line 1, has 1 endings, where 2 are needed.",
        ),
        (
            "object.jsonl",
            '{"prompt": "a", "choices": {"text": ["b", "c"]}, "label": 0}',
            "object.jsonl, line 1, has dict in 'choices', where a list is needed.",
        ),
        (
            "number.jsonl",
            '{"prompt": "a", "choices": ["b", 5], "label": 0}',
            "number.jsonl, line 1, has int in 'choices[1]', which is no text.",
        ),
        (
            "lost.jsonl",
            '{"prompt": "a", "choices": ["b", "c"], "label": 0}\n{"prompt": "a", "label": 0}',
            "lost.jsonl, line 2, has no field 'choices'.",
        ),
    ],
)
def test_bad_data(task: MultipleChoice, write: Write, name: str, content: str, message: str) -> None:
    assert tiny_tasks.error_of(task, write(name, content)) == message
