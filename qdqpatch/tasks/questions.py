"""Questions with their paragraphs and answers: files in SQuAD's layout, and rows as the hub has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qdqpatch.data.squad import read_squad
from qdqpatch.errors import DataError, NoLabelsError
from qdqpatch.spelling import counted, spelled
from qdqpatch.tasks.base import Columns, DataSource
from qdqpatch.tasks.reading import LabelledRow, checked_file, is_format, read_rows

ANSWERS = "answers"
"""The usual column of answers."""


@dataclass(frozen=True)
class Question:
    """A question, its paragraph, and the reference answers with the places where they begin.

    Without answers it is one that the paragraph does not answer (SQuAD v2), or one that was read without.
    """

    text: str
    context: str
    answers: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()


def read_questions(source: DataSource, labelled: bool, no_answer: bool = False) -> list[Question]:
    """Read the questions of a file in SQuAD's layout (.json), or of the rows of another file or data set.

    Args:
        source: The data.
        labelled: Whether answers are read; if not, they are ignored.
        no_answer: Whether a question may have none.

    Raises:
        NoLabelsError: If answers are to be read and no question has any.
        DataError: If it is missing, damaged or empty, or a question lacks something or has an answer that
            its paragraph does not.
    """
    raw = list(_squad_rows(source) if is_format(source, ".json") else read_rows(source))
    named = source.columns.label
    if labelled and named is None and not any(ANSWERS in row.fields for row in raw):
        raise NoLabelsError(
            f"{source.name} has no answers: {ANSWERS!r} is in none of its {counted(len(raw), 'question')}."
        )
    return [_question(row, source.columns, labelled, no_answer) for row in raw]


def _squad_rows(source: DataSource) -> Iterator[LabelledRow]:
    path = checked_file(source)
    for number, (line, fields) in enumerate(read_squad(path), start=1):
        name = fields.get("id")
        place = f"line {line}, question {name!r}" if isinstance(name, str) else f"question number {number}"
        yield LabelledRow(f"{path}, {place},", fields)


def _question(row: LabelledRow, columns: Columns, labelled: bool, no_answer: bool) -> Question:
    question = row.text(columns.text or "question")
    context = row.text(columns.text_pair or "context", strip=False)  # answers are places in it
    if not labelled:
        return Question(question, context)
    pairs = list(_answers(row.value(columns.label or ANSWERS), row.where))
    if not pairs and not no_answer:
        raise DataError(
            f"{row.where} has no answer. If that is meant, as in SQuAD v2, set {spelled('no_answer')}."
        )
    for answer, start in pairs:
        if not answer:
            raise DataError(f"{row.where} has an answer that is empty.")
        if context[start : start + len(answer)] != answer or start < 0:
            raise DataError(
                f"{row.where} has the answer {answer!r}, which its context does not have at {start}."
            )
    return Question(question, context, tuple(text for text, _ in pairs), tuple(start for _, start in pairs))


def _answers(answers: Any, where: str) -> Iterator[tuple[str, int]]:
    """Yield text and start of each answer: SQuAD has a list of objects, the hub an object of lists."""
    try:
        if isinstance(answers, Mapping):
            found = zip(answers["text"], answers["answer_start"], strict=True)
        else:
            found = ((answer["text"], answer["answer_start"]) for answer in answers)  # type: ignore[assignment]
        for text, start in found:
            yield str(text), int(start)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{where} has answers in another form than SQuAD's: texts and answer_start are needed ({error})."
        ) from error
