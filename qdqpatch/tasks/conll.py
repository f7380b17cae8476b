"""Files with a word and its tag on each line, as the CoNLL shared tasks have them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qdqpatch.data.files import open_text
from qdqpatch.errors import DataError
from qdqpatch.tasks.base import DataSource
from qdqpatch.tasks.reading import LabelledRow, checked_file


@dataclass(frozen=True)
class Word:
    """A word, its tag as the data has it (None if it was not read), and where it stands."""

    text: str
    tag: str | None
    where: str


def read_conll(source: DataSource, labelled: bool) -> Iterator[list[Word]]:
    """Yield the sentences of a file, which blank lines and `-DOCSTART-` lines separate.

    Args:
        source: The file. Its columns are separated by tabs, or by blanks on lines without a tab; the first
            one is the word, the last one the tag.
        labelled: Whether each word must have a tag; if not, tags are ignored.

    Raises:
        DataError: If the file is not there, damaged or empty, or a line is no word with a tag.
    """
    path = checked_file(source)
    words: list[Word] = []
    empty = True
    with open_text(path, errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if line.strip() and not line.startswith("-DOCSTART-"):
                words.append(_word(line, f"{path}, line {number},", labelled))
                empty = False
            elif words:
                yield words
                words = []
    if words:
        yield words
    if empty:
        raise DataError(f"{path} is empty.")


def _word(line: str, where: str, labelled: bool) -> Word:
    columns = [column.strip() for column in (line.split("\t") if "\t" in line else line.split())]
    if labelled and (len(columns) < 2 or not columns[-1]):
        raise DataError(
            f"{where} has the word {columns[0]!r} without a tag, which a tab or a blank separates."
        )
    text = LabelledRow(where, {"word": columns[0]}).text("word")
    return Word(text, columns[-1] if labelled else None, where)
