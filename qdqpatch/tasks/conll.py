"""Files with a word and its tag on each line, as the CoNLL shared tasks have them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from qdqpatch.data.files import open_text
from qdqpatch.errors import DataError
from qdqpatch.tasks.base import DataSource
from qdqpatch.tasks.reading import LabelledRow, checked_file

COMMENT = re.compile(r"#\s+(\S+(\s+id)?\s+=\s|new(doc|par)\s*$)")
"""What comments are like, such as `# sent_id = 7`, where blanks separate a word and its tag too."""


@dataclass(frozen=True)
class Word:
    """A word, its tag as the data has it (None if it was not read), and where it stands."""

    text: str
    tag: str | None
    where: str


def read_conll(source: DataSource, labelled: bool) -> Iterator[list[Word]]:
    """Yield the sentences of a file, which blank lines and `-DOCSTART-` lines separate.

    Comments before a sentence are left out: lines without a tab that begin with `#`, in a file that has tabs;
    in one that has none, only those that are like `COMMENT`. Any other `#` is a word.

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
        has_tabs = any("\t" in line for line in file)
    with open_text(path, errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not words and _is_comment(line, has_tabs):
                continue
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


def _is_comment(line: str, has_tabs: bool) -> bool:
    """Tell whether a line before a sentence's first word is a comment, in a file with tabs or without."""
    if not line.startswith("#") or "\t" in line:
        return False
    return has_tabs or COMMENT.match(line) is not None


def _word(line: str, where: str, labelled: bool) -> Word:
    columns = [column.strip() for column in (line.split("\t") if "\t" in line else line.split())]
    if labelled and (len(columns) < 2 or not columns[-1]):
        raise DataError(
            f"{where} has the word {columns[0]!r} without a tag, which a tab or a blank separates."
        )
    text = LabelledRow(where, {"word": columns[0]}).text("word")
    return Word(text, columns[-1] if labelled else None, where)
