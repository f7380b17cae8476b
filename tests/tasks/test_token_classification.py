import json

import numpy as np
import pytest
import seqeval.metrics
import tiny_tasks
import torch
from hypothesis import given
from hypothesis import strategies as st
from texts import Write

from qdqpatch.errors import DataError
from qdqpatch.evaluation.predicting import predict, torch_run
from qdqpatch.tasks.base import Columns, DataSource
from qdqpatch.tasks.entities import are_entity_tags, entity_f1
from qdqpatch.tasks.token_classification import FIRST_PIECES, Sentence, TokenClassification

HEAD = "BertForTokenClassification"
NAMES = {0: "O", 1: "B-pet", 2: "I-pet"}
KNOWN = "the model's are 0 (O), 1 (B-pet), 2 (I-pet)."
WORDS = [("the", "cat", "sat"), ("dogs",), ("a", "dog", "and", "cats", "on", "the", "mat", ".")]


@pytest.fixture(scope="module")
def task() -> TokenClassification:
    return tiny_tasks.make(TokenClassification, HEAD, id2label=NAMES)[0]


def test_from_file_to_accuracy_and_f1(write: Write) -> None:
    task, model = tiny_tasks.make(TokenClassification, HEAD, id2label=NAMES)
    with torch.no_grad():
        model.classifier.bias += torch.tensor([1.0, 0.0, 0.0])  # so that it finds entities and other words
    firsts = [[1, 2, 3], [1], [1, 2, 3, 4, 6, 7, 8, 9]]  # "dogs" and "cats" are two tokens
    best = [
        tiny_tasks.alone(model, " ".join(words))["logits"][0].argmax(-1)[places].tolist()
        for words, places in zip(WORDS, firsts, strict=True)
    ]
    true = [list(tags) for tags in best]
    true[0][1] = (true[0][1] + 1) % 3
    lines = [
        "".join(f"{word}\tx\t{NAMES[tag]}\n" for word, tag in zip(words, tags, strict=True))
        for words, tags in zip(WORDS, true, strict=True)
    ]
    examples = task.read(DataSource(str(write("dev.conll.gz", "\n".join(lines)))))
    assert examples == [Sentence(words, tuple(tags)) for words, tags in zip(WORDS, true, strict=True)]
    features = task.features(examples)
    assert [feature[FIRST_PIECES] for feature in features] == firsts

    outputs = predict(torch_run(model), task, features, batch_size=2)

    accuracy, f1 = task.score(examples, features, outputs)
    assert accuracy.name == "accuracy"
    assert accuracy.value == pytest.approx(100 * 11 / 12, rel=1e-12)
    wanted = seqeval.metrics.f1_score(
        [[NAMES[tag] for tag in tags] for tags in true], [[NAMES[tag] for tag in tags] for tags in best]
    )
    assert f1.name == "entity F1"
    assert f1.value == pytest.approx(100 * wanted, rel=1e-12)
    assert 0 < wanted < 1


tags = st.sampled_from(["O", "B-a", "I-a", "E-a", "S-a", "B-b", "I-b", "I-a-b"])


@given(st.lists(st.lists(st.tuples(tags, tags), min_size=1, max_size=8), min_size=1, max_size=5))
def test_f1_of_sums_over_sentences_is_seqevals(sentences: list[list[tuple[str, str]]]) -> None:
    predicted, true = ([[pair[part] for pair in sentence] for sentence in sentences] for part in (0, 1))
    metric = entity_f1(predicted, true)
    assert len(metric.numerators) == len(metric.denominators) == len(sentences)
    # seqeval warns where it divides by no entity, and takes 0 for the result.
    wanted = seqeval.metrics.f1_score(true, predicted, zero_division=0)
    assert metric.value == pytest.approx(100 * wanted, rel=1e-12)


def test_words_without_tokens_and_cut_ones_are_predicted_outside() -> None:
    task, _ = tiny_tasks.make(TokenClassification, HEAD, 5, id2label=NAMES)
    example = Sentence(("cat", "\u200b", "dogs", "mat", "the"), (1, 1, 1, 1, 0))
    (feature,) = task.features([example])
    assert feature["input_ids"] == [2, 6, 7, 13, 3]
    assert feature[FIRST_PIECES] == [1, None, 2, None, None]
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1, 1, 0]]
    accuracy, f1 = task.score([example], [feature], [{"logits": logits}])
    assert (accuracy.numerators.tolist(), accuracy.denominators.tolist()) == ([3], [5])
    assert (f1.numerators.tolist(), f1.denominators.tolist()) == ([4], [6])


def test_training_labels_are_at_first_tokens_only() -> None:
    task, _ = tiny_tasks.make(TokenClassification, HEAD, 8, id2label=NAMES)
    examples = [Sentence(("the", "cats", "sat"), (0, 1, 2)), Sentence(("dog",) * 9, (2,) * 9)]
    training = task.features(examples, training=True)
    assert [row["labels"] for row in training] == [[-100, 0, 1, -100, 2, -100], [-100, *[2] * 6, -100]]
    assert "labels" not in task.features(examples)[0]
    batch = task.collate(training)
    assert batch["input_ids"][0].tolist() == [2, 10, 6, 13, 8, 3, 0, 0]
    assert batch["labels"][0].tolist() == [-100, 0, 1, -100, 2, -100, -100, -100]


def test_tags_that_are_no_entities_have_accuracy_only() -> None:
    task, _ = tiny_tasks.make(TokenClassification, HEAD, id2label={0: "NOUN", 1: "VERB", 2: "X"})
    example = Sentence(("cat",), (0,))
    (accuracy,) = task.score([example], task.features([example]), [{"logits": np.eye(3)[[1, 0, 1]]}])
    assert accuracy.value == 100
    assert are_entity_tags(["O", "B-pet", "I-pet"])
    assert not are_entity_tags(["O"])


def test_reads_conll_with_blanks_and_document_starts(task: TokenClassification, write: Write) -> None:
    text = (
        "\ufeff-DOCSTART- -X- O O\r\n\r\nthe DT O\r\ncat NN B-pet\r\n\r\n\r\n-DOCSTART- O\r\ndog NN b-PET\r\n"
    )
    expected = [Sentence(("the", "cat"), (0, 1)), Sentence(("dog",), (1,))]
    assert task.read(DataSource(str(write("train.conll", text)))) == expected
    without = [Sentence(sentence.words) for sentence in expected]
    assert task.read(DataSource(str(write("train.conll", text))), labelled=False) == without
    assert task.read(DataSource(str(write("words.conll", "the\ncat\n\ndog"))), labelled=False) == without


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# sent_id = 7\n#of any kind\nthe\tO\n#\tO\n\n# newdoc\n#a\tO\n\n# last = 1", ["the #", "#a"]),
        ("#\tO\n# x = y\tO\n\n# text = a\n\n#\n#tag\tO\n", ["# # x = y", "#tag"]),
        ("# newdoc id = x\n# text = # O\n# newpar\nthe O\n# O\n\n# text = O\ncat O\n", ["the #", "cat"]),
        ("# O\n#tag O\n# = O\n\n#a=b O\nthe O\n", ["# #tag #", "#a=b the"]),
    ],
    ids=["tabs", "words with tabs", "blanks", "words with blanks"],
)
def test_comments_of_conll_are_no_words(
    text: str, words: list[str], task: TokenClassification, write: Write
) -> None:
    found = task.read(DataSource(str(write("tags.conll", text))))
    assert [" ".join(sentence.words) for sentence in found] == words


def test_reads_rows_with_names_and_numbers(task: TokenClassification, write: Write) -> None:
    rows = [
        {"tokens": ["the", "cat"], "ner_tags": ["O", "B-pet"]},
        {"tokens": ["dogs"], "ner_tags": ["B-pet"]},
    ]
    expected = [Sentence(("the", "cat"), (0, 1)), Sentence(("dogs",), (1,))]
    data = write("data.jsonl", "\n".join(json.dumps(row) for row in rows))
    assert task.read(DataSource(str(data))) == expected
    data = write("data.jsonl", json.dumps({"w": ["dogs"], "t": [1]}))
    assert task.read(DataSource(str(data), Columns("w", None, "t"))) == expected[1:]
    data = write("data.jsonl", json.dumps({"Words": ["dogs"]}))
    assert task.read(DataSource(str(data)), labelled=False) == [Sentence(("dogs",))]


def test_words_of_tag_100_below_zero_do_not_count(write: Write) -> None:
    """As data sets of the hub have them, for words that nobody has tagged."""
    task, model = tiny_tasks.make(TokenClassification, HEAD, id2label=NAMES)
    tags = [[0, -100, 1], [-100]]
    rows = [{"tokens": list(words), "tags": some} for words, some in zip(WORDS[:2], tags, strict=True)]
    examples = task.read(DataSource(str(write("data.jsonl", "\n".join(map(json.dumps, rows))))))
    assert [example.tags for example in examples] == [(0, -100, 1), (-100,)]
    features = task.features(examples, training=True)
    assert [feature["labels"][1:4] for feature in features] == [[0, -100, 1], [-100, -100, -100]]
    outputs = predict(torch_run(model), task, features)
    (best, _), right = [output["logits"].argmax(-1).tolist() for output in outputs], 0
    right += (best[1] == 0) + (best[3] == 1)
    assert task.score(examples, features, outputs)[0].value == pytest.approx(100 * right / 2)
    with pytest.raises(DataError, match="has the tag -100 at every word"):
        task.read(DataSource(str(write("none.jsonl", json.dumps({"tokens": ["a"], "tags": [-100]})))))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "tags.conll",
            "the\tO\n\ncat\tB-zoo\n",
            f"tags.conll, line 3, has the label 'B-zoo'; {KNOWN}",
        ),
        ("tags.conll", "the\tO\ncat\t3\n", f"tags.conll, line 2, has the label '3'; {KNOWN}"),
        (
            "bare.conll",
            "the O\ncat\n",
            "bare.conll, line 2, has the word 'cat' without a tag, which a tab or a blank separates.",
        ),
        (
            "bare.conll",
            "the\tO\ncat\t\n",
            "bare.conll, line 2, has the word 'cat' without a tag, which a tab or a blank separates.",
        ),
        ("gone.conll", "the\tO\n\tO\n", "gone.conll, line 2, has nothing in 'word'."),
        ("bytes.conll", b"the\tO\n\xff\tO\n", "bytes.conll, line 2, is not UTF-8 text."),
        (
            "tags.jsonl",
            '{"tokens": ["the", "cat"], "tags": ["O", "B-zoo"]}',
            f"tags.jsonl, line 1, word 2, has the label 'B-zoo'; {KNOWN}",
        ),
        (
            "null.jsonl",
            '{"tokens": ["the", "cat"], "tags": ["O", null]}',
            f"null.jsonl, line 1, word 2, has the label 'None'; {KNOWN}",
        ),
        (
            "fewer.jsonl",
            '{"tokens": ["the", "cat"], "tags": ["O"]}',
            "fewer.jsonl, line 1, has 2 words and 1 tag.",
        ),
        (
            "text.jsonl",
            '{"tokens": "the cat", "tags": ["O"]}',
            "text.jsonl, line 1, has str in 'tokens', where a list is needed.",
        ),
        (
            "number.jsonl",
            '{"tokens": ["the", 5], "tags": [0, 0]}',
            "number.jsonl, line 1, has something in 'tokens' that is no word.",
        ),
        ("none.jsonl", '{"tokens": [], "tags": []}', "none.jsonl, line 1, has nothing in 'tokens'."),
        ("lone.jsonl", '{"tokens": ["\\ud800"], "tags": [0]}', "lone.jsonl, line 1, is not UTF-8 text."),
        (
            "lost.jsonl",
            '{"tokens": ["the"], "tags": [0]}\n{"tokens": ["cat"]}',
            "lost.jsonl, line 2, has no field 'tags'.",
        ),
        (
            "other.jsonl",
            '{"text": ["the"], "tags": [0]}',
            "other.jsonl has no column of words by a usual name (tokens, words); it has text, tags. Name it "
            "with text.",
        ),
        (
            "other.jsonl",
            '{"tokens": ["the"], "pos": [0]}',
            "other.jsonl has no column of tags by a usual name (ner_tags, tags, labels); it has tokens, pos. "
            "Name it with label.",
        ),
    ],
)
def test_bad_data(
    task: TokenClassification, write: Write, name: str, content: str | bytes, message: str
) -> None:
    assert tiny_tasks.error_of(task, write(name, content)) == message


def test_named_columns_must_be_there(task: TokenClassification, write: Write) -> None:
    data = write("data.jsonl", '{"tokens": ["the"], "tags": [0]}')
    message = "data.jsonl has no column 'x'; it has tokens, tags."
    assert tiny_tasks.error_of(task, data, "x") == message
    assert tiny_tasks.error_of(task, data, None, None, "x") == message
