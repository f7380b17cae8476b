"""Files in SQuAD's layout: articles with paragraphs with questions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qdqpatch.data.files import open_text
from qdqpatch.errors import DataError


def read_squad(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each question with its paragraph as `context`, and the line on which its id stands.

    Raises:
        DataError: If the file is damaged or empty, or has another layout.
    """
    with open_text(path) as file:
        text = file.read()
    try:
        layout = json.loads(text)
    except (ValueError, RecursionError) as error:
        if _has_objects(text.splitlines()):
            raise DataError(
                f"{path} has a JSON object on each line: name it {_renamed(path)}. A .json file has SQuAD's "
                "layout."
            ) from error
        raise DataError(f"{path} is not JSON ({error}).") from error
    if layout and (isinstance(layout, list) or (isinstance(layout, dict) and "data" not in layout)):
        raise DataError(
            f"{path} is not in SQuAD's layout, as a .json file has to be: it has no list 'data'. Write "
            f"records as one JSON object on each line, in a file named {_renamed(path)}."
        )
    articles = layout.get("data") if isinstance(layout, dict) else None
    if not isinstance(articles, list):
        raise DataError(f"{path} is not in SQuAD's layout: it has no list 'data'.")
    empty, place, line = True, 0, 1
    for number, article in enumerate(articles):
        try:
            questions = [
                {"context": part["context"], **question}
                for part in article["paragraphs"]
                for question in part["qas"]
            ]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path} is not in SQuAD's layout: article {number}, counted from 0, has no paragraphs with "
                f"a context and qas each ({type(error).__name__}: {error})."
            ) from error
        for fields in questions:
            empty = False
            # JSON has lines too, and an error is found faster by its line than by the id of its question.
            if isinstance(name := fields.get("id"), str):
                before, place = place, max(place, text.find(json.dumps(name), place))
                line += text.count("\n", before, place)
            yield line, fields
    if empty:
        raise DataError(f"{path} is empty: it has no question.")


def _has_objects(lines: list[str]) -> bool:
    """Tell whether the first lines hold a JSON object each."""
    try:
        found = [json.loads(line) for line in lines[:2] if line.strip()]
    except (ValueError, RecursionError):
        return False
    return bool(found) and all(isinstance(value, dict) for value in found)


def _renamed(path: Path) -> str:
    """Return the name that a file of records should have."""
    name = path.name
    packed = name[-3:] if name.lower().endswith(".gz") else ""
    return f"{name.removesuffix(packed).rpartition('.')[0]}.jsonl{packed}"
