"""Data sets by a name that is no file: one of the hub, or a folder that holds one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdqpatch.data.hub import load_hub_dataset
from qdqpatch.data.records import file_format
from qdqpatch.data.stored import has_stored_splits, is_stored, load_stored
from qdqpatch.errors import ConfigError
from qdqpatch.spelling import spelled


def is_hub_name(data: str | Path) -> bool:
    """Tell whether a string stands for a data set on the hub: there is no such file, nor could there be."""
    try:
        exists = Path(data).exists()
    except OSError:  # too long for a name
        exists = False
    return isinstance(data, str) and not exists and not file_format(Path(data))


def has_splits(data: str | Path) -> bool:
    """Tell whether a split can be named: of a data set on the hub, or a folder with several."""
    return is_hub_name(data) or has_stored_splits(data)


def is_dataset(data: str | Path) -> bool:
    """Tell whether `load_dataset` loads it, and it is no file."""
    return is_hub_name(data) or is_stored(data)


def load_dataset(data: str | Path, split: str | None = None, subset: str | None = None) -> Any:
    """Load a data set; of one in a folder, rows are read as they are needed.

    Args:
        data: A name for which `is_dataset` is true.
        split: The split, if it has several; None for "train".
        subset: The subset of one on the hub; None for the only or default one.

    Raises:
        DataError: If `datasets` is not installed, or there is no such data set, subset or split.
        ConfigError: If a split or subset is named where there are none.
    """
    if is_hub_name(data):
        return load_hub_dataset(str(data), split, subset)
    if subset is not None:
        raise ConfigError(f"{data} has no subsets: {spelled('subset')} is for data sets on the hub.")
    return load_stored(Path(data), split)
