import json
import re

import numpy as np
import pytest
import tiny_tasks
from texts import Write

from qdqpatch.errors import ConfigError
from qdqpatch.evaluation.predicting import predict, torch_run
from qdqpatch.tasks.base import Columns, DataSource
from qdqpatch.tasks.question_answering import OFFSETS, QuestionAnswering
from qdqpatch.tasks.questions import Question
from qdqpatch.tasks.squad import scores

HEAD = "BertForQuestionAnswering"
CONTEXT = "the cat sat on the mat and the dog sat on the mats ."
SPANS = [match.span() for match in re.finditer(r"\S+", CONTEXT)]
LENGTH = 12  # [CLS] the cat [SEP] and [SEP] leave 7 tokens of the paragraph, which has 15


@pytest.fixture(scope="module")
def task() -> QuestionAnswering:
    return tiny_tasks.make(QuestionAnswering, HEAD, LENGTH)[0]


def squad(*questions: dict[str, object], context: str = CONTEXT) -> str:
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": questions}]}]}, indent=1)


def question(answer: str, start: int, name: str = "q1") -> dict[str, object]:
    return {"id": name, "question": "the cat", "answers": [{"text": answer, "answer_start": start}]}


def test_from_file_to_scores(write: Write) -> None:
    task, model = tiny_tasks.make(QuestionAnswering, HEAD, 32)
    texts = ["a dog", "the mat and the cat", "on"]
    best = []
    for text in texts:
        found = tiny_tasks.alone(model, text, CONTEXT)
        encoded = tiny_tasks.tokenizer()(text, CONTEXT, return_offsets_mapping=True)
        inside = [place for place, part in enumerate(encoded.sequence_ids()) if part == 1]
        pairs = [(first, last) for first in inside for last in inside if first <= last]
        start, end = found["start_logits"][0], found["end_logits"][0]
        first, last = max(pairs, key=lambda pair: float(start[pair[0]] + end[pair[1]]))
        places = encoded["offset_mapping"]
        best.append((CONTEXT[places[first][0] : places[last][1]], places[first][0]))
    # The first answer is right, the second one has a word more than the best one or less, the third is wrong.
    other = CONTEXT.split(best[1][0])[0] + best[1][0]
    wanted = [best[0], (other, 0), (".", CONTEXT.index("."))]
    rows = [
        {"id": f"q{number}", "question": text, "answers": [{"text": answer, "answer_start": start}]}
        for number, (text, (answer, start)) in enumerate(zip(texts, wanted, strict=True))
    ]
    examples = task.read(DataSource(str(write("dev.json.gz", squad(*rows)))))
    features = task.features(examples)

    outputs = predict(torch_run(model), task, features, batch_size=2)

    assert task.answers(examples, features, outputs) == [text for text, _ in best]
    exact, f1 = task.score(examples, features, outputs)
    pairs = [scores(text, [answer]) for (text, _), (answer, _) in zip(best, wanted, strict=True)]
    assert (exact.name, exact.value) == ("exact match", 100 * np.mean([pair[0] for pair in pairs]))
    assert (f1.name, f1.value) == ("F1", 100 * np.mean([pair[1] for pair in pairs]))
    assert 0 < exact.value < f1.value < 100


def test_windows_overlap_and_hold_the_whole_paragraph() -> None:
    task = tiny_tasks.make(QuestionAnswering, HEAD, LENGTH)[0]
    task.stride = 2
    features = task.features([Question("the cat", CONTEXT), Question("the cat", "a dog")])
    assert [feature["example"] for feature in features] == [0, 0, 0, 1]
    places = [[place for place in feature[OFFSETS] if place is not None] for feature in features]
    assert [len(span) for span in places] == [7, 7, 5, 2]
    assert places[0][-2:] == places[1][:2]
    assert places[1][-2:] == places[2][:2]
    pieces = sorted({place for span in places[:3] for place in span})
    assert [CONTEXT[start:end] for start, end in pieces] == [*CONTEXT.split()[:12], "mat", "s", "."]
    assert [feature[OFFSETS][:4] for feature in features] == [[None] * 4] * 4  # [CLS] the cat [SEP]


def test_training_labels_are_the_answers_tokens_in_every_window_that_holds_all_of_it(
    task: QuestionAnswering,
) -> None:
    inside = outside = 0
    for first in range(len(SPANS)):
        for last in range(first, len(SPANS)):
            start, end = SPANS[first][0], SPANS[last][1]
            example = Question("the cat", CONTEXT, (CONTEXT[start:end],), (start,))
            for feature in task.features([example], training=True):
                places = feature[OFFSETS]
                held = [place for place in places if place is not None]
                label = feature["start_positions"], feature["end_positions"]
                if held[0][0] <= start and end <= held[-1][1]:
                    assert (places[label[0]][0], places[label[1]][1]) == (start, end)
                    inside += 1
                else:
                    assert label == (0, 0)
                    outside += 1
    assert inside > 50
    assert outside > 50


def test_training_labels_at_the_edges_of_windows() -> None:
    task = tiny_tasks.make(QuestionAnswering, HEAD, LENGTH)[0]
    task.stride = 2  # windows begin with tokens 0, 5 and 10; a paragraph's tokens come after 4 others

    def labels(first: int, last: int) -> list[tuple[int, int]]:
        answer = Question(
            "the cat", CONTEXT, (CONTEXT[SPANS[first][0] : SPANS[last][1]],), (SPANS[first][0],)
        )
        return [
            (feature["start_positions"], feature["end_positions"])
            for feature in task.features([answer], True)
        ]

    assert labels(0, 0) == [(4, 4), (0, 0), (0, 0)]
    assert labels(6, 6) == [(10, 10), (5, 5), (0, 0)]
    assert labels(4, 6) == [(8, 10), (0, 0), (0, 0)]
    assert labels(6, 7) == [(0, 0), (5, 6), (0, 0)]
    assert labels(0, 7) == [(0, 0), (0, 0), (0, 0)]
    assert labels(12, 13) == [(0, 0), (0, 0), (6, 8)]  # "mats" is two tokens


def test_a_batch_for_training_has_both_labels(task: QuestionAnswering) -> None:
    examples = [
        Question("the cat", "a dog sat", ("dog",), (2,)),
        Question("on", "the mat", ("mat",), (4,)),
    ]
    batch = task.collate(task.features(examples, training=True))
    assert batch["input_ids"].tolist() == [[2, 10, 6, 3, 5, 7, 8, 3], [2, 9, 3, 10, 11, 3, 0, 0]]
    assert batch["start_positions"].tolist() == [5, 4]
    assert batch["end_positions"].tolist() == [5, 4]


def test_the_answer_is_the_best_span_of_all_windows(task: QuestionAnswering) -> None:
    examples = [Question("the cat", CONTEXT, ("dog",), (31,)), Question("the cat", "a dog", ("a",), (0,))]
    features = task.features(examples)
    outputs = [
        {name: np.zeros(len(feature["input_ids"]), np.float32) for name in task.logits}
        for feature in features
    ]
    for window, token, logit in ((0, 5, 2.0), (1, 6, 3.0), (-1, 5, 1.0)):
        outputs[window]["start_logits"][token] = outputs[window]["end_logits"][token] = logit
    outputs[0]["start_logits"][0] = outputs[0]["end_logits"][0] = 9.0  # [CLS] is no answer
    places = features[1][OFFSETS][6]
    assert task.answers(examples, features, outputs) == [CONTEXT[places[0] : places[1]], "dog"]
    outputs[0]["start_logits"][5] = 4.5
    assert task.answers(examples, features, outputs) == ["cat", "dog"]


def test_questions_without_an_answer(write: Write) -> None:
    task = tiny_tasks.make(QuestionAnswering, HEAD, LENGTH)[0]
    task.no_answer, task.stride = True, 2
    impossible = {"id": "q2", "question": "on", "answers": [], "is_impossible": True}
    examples = task.read(DataSource(str(write("dev.json", squad(question("cat", 4), impossible)))))
    assert examples == [Question("the cat", CONTEXT, ("cat",), (4,)), Question("on", CONTEXT)]
    training = task.features(examples, training=True)
    labels = [(row["example"], row["start_positions"], row["end_positions"]) for row in training]
    assert labels == [(0, 5, 5), (0, 0, 0), (0, 0, 0), (1, 0, 0), (1, 0, 0), (1, 0, 0)]

    features = task.features(examples)
    outputs = [
        {name: np.zeros(len(feature["input_ids"]), np.float32) for name in task.logits}
        for feature in features
    ]
    for window, token in ((0, 5), (3, 3)):
        outputs[window]["start_logits"][token] = outputs[window]["end_logits"][token] = 2.0
    for window, logit in enumerate((3.0, 4.0, 2.5, 2.0, 2.5, 1.75)):  # of no answer; the lowest one counts
        outputs[window]["start_logits"][0] = outputs[window]["end_logits"][0] = logit
    assert task.answers(examples, features, outputs) == ["", "the"]
    task.null_threshold = 1.0  # the difference is 1, which is not more than that
    assert task.answers(examples, features, outputs) == ["cat", "the"]
    task.null_threshold = -0.75
    assert task.answers(examples, features, outputs) == ["", ""]
    assert [score.value for score in task.score(examples, features, outputs)] == [50, 50]
    task.no_answer = False
    assert task.answers(examples, features, outputs) == ["cat", "the"]


@pytest.mark.parametrize("words", [1, 5, 10, 17, 40])
@pytest.mark.parametrize("length", [8, 9, 12, 32])
def test_long_questions_leave_room_for_the_paragraph(words: int, length: int) -> None:
    task = tiny_tasks.make(QuestionAnswering, HEAD, length)[0]
    features = task.features([Question("cat " * words, CONTEXT), Question("", CONTEXT)])
    for number in (0, 1):
        own = [feature for feature in features if feature["example"] == number]
        assert all(len(feature["input_ids"]) <= length for feature in own)
        held = {place for feature in own for place in feature[OFFSETS] if place is not None}
        assert len(held) == 15
    assert features[0]["input_ids"].count(6) >= min(words, (length - 3) // 2)


def test_windows_that_hold_nothing_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_tasks.make(QuestionAnswering, HEAD, 6)
    assert str(caught.value) == (
        "Windows of 6 tokens, 3 of them special ones, are too short for a question and its paragraph."
    )


def test_blanks_around_a_paragraph_are_kept_for_answers_are_places_in_it(
    task: QuestionAnswering, write: Write
) -> None:
    row = {"question": "who", "context": "\n a cat ", "answers": {"text": ["cat"], "answer_start": [4]}}
    data = write("data.jsonl", json.dumps(row))
    assert task.read(DataSource(str(data))) == [Question("who", "\n a cat ", ("cat",), (4,))]


def test_reads_rows_of_the_hub_and_other_names_of_columns(task: QuestionAnswering, write: Write) -> None:
    answers = {"text": ["cat", "the cat"], "answer_start": [4, 0]}
    expected = [Question("who", CONTEXT, ("cat", "the cat"), (4, 0))]
    row = {"question": " who", "context": CONTEXT, "answers": answers}
    assert task.read(DataSource(str(write("hub.jsonl", json.dumps(row))))) == expected
    row = {"q": "who", "c": CONTEXT, "a": answers}
    assert task.read(DataSource(str(write("own.jsonl", json.dumps(row))), Columns("q", "c", "a"))) == expected
    del row["a"]
    unlabelled = DataSource(str(write("none.jsonl", json.dumps(row))), Columns("q", "c"))
    assert task.read(unlabelled, labelled=False) == [Question("who", CONTEXT)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))."),
        ("[]", "is not in SQuAD's layout: it has no list 'data'."),
        ('{"data": 5}', "is not in SQuAD's layout: it has no list 'data'."),
        (
            '{"data": [{"paragraphs": [{"context": "a"}]}]}',
            "is not in SQuAD's layout: article 0, counted from 0, has no paragraphs with a context and qas "
            "each (KeyError: 'qas').",
        ),
        (
            b'{"data": "\xff"}',
            "is not UTF-8 text ('utf-8' codec can't decode byte 0xff in position 10: invalid start byte). "
            "Save it as UTF-8.",
        ),
    ],
)
def test_other_layouts_than_squads(
    task: QuestionAnswering, write: Write, content: str | bytes, message: str
) -> None:
    assert tiny_tasks.error_of(task, write("bad.json", content)) == f"bad.json {message}"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            question("dog", 4, "q2"),
            "line 19, question 'q2', has the answer 'dog', which its context does not have at 4.",
        ),
        (
            question("cat", -48, "q2"),
            "line 19, question 'q2', has the answer 'cat', which its context does not have at -48.",
        ),
        (question("", 4, "q2"), "line 19, question 'q2', has an answer that is empty."),
        (
            {"id": "q2", "question": "who", "answers": []},
            "line 19, question 'q2', has no answer. If that is meant, as in SQuAD v2, set no_answer.",
        ),
        (
            {"id": "q2", "question": "who", "answers": [{"text": "cat"}]},
            "line 19, question 'q2', has answers in another form than SQuAD's: texts and answer_start are "
            "needed ('answer_start').",
        ),
        ({"id": "q2", "question": "who"}, "line 19, question 'q2', has no field 'answers'."),
        ({"id": "q2", "answers": []}, "line 19, question 'q2', has no field 'question'."),
        ({"answers": []}, "question number 2, has no field 'question'."),
    ],
)
def test_bad_questions(task: QuestionAnswering, write: Write, bad: dict[str, object], message: str) -> None:
    text = squad(question("cat", 4), bad)
    assert '"q2"' not in text or '"q2"' in text.splitlines()[18]
    assert tiny_tasks.error_of(task, write("dev.json", text)) == f"dev.json, {message}"


def test_bad_rows(task: QuestionAnswering, write: Write) -> None:
    row = {"question": "who", "context": "\ud800 cat", "answers": {"text": ["cat"], "answer_start": [2]}}
    data = write("data.jsonl", json.dumps(row))
    assert tiny_tasks.error_of(task, data) == "data.jsonl, line 1, is not UTF-8 text."
    data = write(
        "data.jsonl", json.dumps(row | {"context": "a cat", "answers": {"text": ["cat"], "answer_start": []}})
    )
    assert tiny_tasks.error_of(task, data).startswith("data.jsonl, line 1, has answers in another form than")
