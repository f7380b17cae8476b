"""The texts to calibrate with: a random sample of a file, a data set, or a list."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdqpatch.data.columns import Columns, Text
from qdqpatch.data.files import check_file
from qdqpatch.data.named import is_dataset, load_dataset
from qdqpatch.data.reading import Reading
from qdqpatch.data.records import Record, file_format, read_records, unit_of
from qdqpatch.data.sampling import random_order, reservoir
from qdqpatch.errors import CalibrationError, ConfigError


@dataclass(frozen=True)
class Texts:
    """Texts drawn from data.

    Attributes:
        rows: The texts, each with its pair or None, in the order that they have in the data.
        source: The name of the data.
        columns: The columns that they come from.
        total: How many there were to draw from.
    """

    rows: list[Text]
    source: str
    columns: Columns
    total: int


def read_texts(
    data: Any,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    *,
    samples: int | None = 256,
    seed: int = 0,
    split: str | None = None,
    subset: str | None = None,
) -> Texts:
    """Draw texts at random and without replacement: the same ones for the same data, samples and seed.

    Lines and rows that cannot be read are left out, and told of in one `CalibrationWarning`.

    Args:
        data: A .txt, .csv, .tsv, .jsonl or SQuAD .json file, also gzipped, or a .parquet file; a folder that
            `save_to_disk` wrote; the name of a data set on the Hugging Face hub, which a string is that names
            no file; a `datasets.Dataset`; a list of texts, or of pairs.
        text_column: The column of the texts; None chooses columns by their usual names.
        text_pair_column: The column of the second texts, if the model reads two together.
        samples: How many to draw; None, or more than there are, for all.
        seed: What the draw depends on.
        split: The split of a hub data set, or of a folder with several; None for "train".
        subset: The subset, also called config, of a hub data set; None for the only or default one.

    Raises:
        ConfigError: If an argument is out of range or does not fit the others.
        CalibrationError: If there is no such data, or more than half of it cannot be read.
    """
    if samples is not None and samples < 1:
        raise ConfigError(f"samples must be at least 1, not {samples}.")
    if text_column is None and text_pair_column is not None:
        raise ConfigError("text_pair_column needs text_column, which names the first text of each pair.")
    columns = None if text_column is None else (text_column, text_pair_column)
    named = isinstance(data, (str, Path))
    source = str(data) if named else "The data"
    if named and is_dataset(data):
        data = load_dataset(data, split, subset)
        named = False
    elif split is not None or subset is not None:
        raise ConfigError(f"split and subset are for data sets on the hub; {source} is none.")
    if named:
        return _from_file(Path(data), columns, samples, seed)
    return _from_rows(data, source, columns, samples, seed)


def _from_file(path: Path, columns: Columns | None, samples: int | None, seed: int) -> Texts:
    check_file(path)
    reading = Reading(str(path), unit_of(path), columns, ragged=file_format(path) == ".jsonl")
    drawn, total = reservoir(reading.texts(read_records(path)), samples, seed)
    return _finished(reading, drawn, total)


def _from_rows(data: Any, source: str, columns: Columns | None, samples: int | None, seed: int) -> Texts:
    names = getattr(data, "column_names", None)
    if isinstance(names, Mapping):
        raise CalibrationError(
            f"{source} has the splits {', '.join(names)}: choose one, such as data['train']."
        )
    is_dataset = names is not None and isinstance(data, Sized) and hasattr(data, "__getitem__")
    if not is_dataset and (not isinstance(data, Sequence) or isinstance(data, bytes)):
        raise CalibrationError(
            f"Texts cannot be read from a {type(data).__name__}: give a file, the name of a data set on the "
            "hub, a datasets.Dataset, or a list of texts or of pairs of texts."
        )
    reading = Reading(source, "row", columns)
    order: Iterable[int] = random_order(len(data), seed)
    if samples is not None:
        order = itertools.islice(order, 2 * samples)  # if fewer than half of these can be read, few can
    drawn = itertools.islice(reading.texts(_records(data, order)), samples)
    return _finished(reading, sorted(drawn, key=lambda pair: pair[0]), len(data))


def _records(data: Any, order: Iterable[int]) -> Iterator[Record]:
    """Yield rows of a data set or a list as records."""
    pairs = len(data) > 0 and _is_pair(data[0])
    for index in order:
        row = data[index]
        if isinstance(row, Mapping):
            yield Record(index, row)
        elif pairs and _is_pair(row):
            yield Record(index, {"text": row[0], "text_pair": row[1]})
        elif isinstance(row, str) and not pairs:
            yield Record(index, {"text": row})
        else:
            wanted = "pair of texts, as row 0 is" if pairs else "text"
            yield Record(index, problem=f"is no {wanted}, but {type(row).__name__}")


def _is_pair(row: Any) -> bool:
    return isinstance(row, (list, tuple)) and len(row) == 2


def _finished(reading: Reading, drawn: list[tuple[int, Text]], total: int) -> Texts:
    reading.report()
    assert reading.columns is not None  # there was a readable record
    return Texts([text for _, text in drawn], reading.source, reading.columns, total)
