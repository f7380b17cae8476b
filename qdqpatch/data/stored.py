"""Folders that `save_to_disk` of `datasets` wrote, for which that package is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdqpatch.errors import ConfigError, DataError, one_line
from qdqpatch.packages import require
from qdqpatch.spelling import spelled

STORED, WITH_SPLITS = "state.json", "dataset_dict.json"
"""What is in such a folder: of a data set, and of several splits of one."""


def is_stored(data: str | Path) -> bool:
    """Tell whether a path is such a folder."""
    return any((Path(data) / name).is_file() for name in (STORED, WITH_SPLITS))


def has_stored_splits(data: str | Path) -> bool:
    """Tell whether a path is such a folder with several splits."""
    return (Path(data) / WITH_SPLITS).is_file()


def load_stored(folder: Path, split: str | None = None) -> Any:
    """Load a data set, whose rows are read as they are needed.

    Args:
        folder: The folder.
        split: The split, if it has several; None for "train".

    Raises:
        DataError: If `datasets` is not installed, the folder is damaged, or there is no such split.
        ConfigError: If a split is named and there are none.
    """
    require(f"{folder}, which save_to_disk wrote,", "datasets", error=DataError)
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # a damaged folder raises whatever its reader does
        raise DataError(f"Cannot read {folder}: {one_line(error)}") from error
    if not isinstance(found, datasets.DatasetDict):
        if split is not None:
            raise ConfigError(f"{folder} has no splits: leave out {spelled('split')}.")
        return found
    if (chosen := split or "train") not in found:
        raise DataError(
            f"{folder} has no split {chosen!r}; name one with {spelled('split')}: {', '.join(found)}."
        )
    return found[chosen]
