"""Reading of texts, as the tests do it."""

from collections.abc import Callable
from pathlib import Path

from qdqpatch.data.texts import read_texts

Write = Callable[[str, "str | bytes"], Path]
PLAIN = [("the cat", None), ("a dog", None)]
PAIRS = [("the cat", "sat"), ("a dog", "and")]


def rows(data: object, *columns: str | None, **options: object) -> list[tuple[str, str | None]]:
    return read_texts(data, *columns, **options).rows
