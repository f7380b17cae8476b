"""Parquet files, for which the `pyarrow` package is needed; `datasets` brings it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qdqpatch.errors import DataError, one_line
from qdqpatch.packages import require

PARQUET = ".parquet"
"""The suffix of such files."""

ROWS = 1024
"""So many rows are in memory at once."""


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file one after the other, by column.

    Raises:
        DataError: If `pyarrow` is not installed, or the file is damaged.
    """
    require(f"{path}, a {PARQUET} file,", "pyarrow", error=DataError)
    parquet = importlib.import_module("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS):
                yield from batch.to_pylist()
    except Exception as error:  # a damaged file raises whatever finds it
        raise DataError(f"{path} is damaged, or is no {PARQUET} file: {one_line(error)}") from error
