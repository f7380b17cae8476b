"""Data sets of the Hugging Face hub, for which the `datasets` package is needed."""

from __future__ import annotations

from typing import Any

from qdqpatch.checkpoint.files import HUB_NAME
from qdqpatch.errors import DataError
from qdqpatch.packages import require

LONGEST_NAME = 96


def load_hub_dataset(name: str, split: str | None = None, subset: str | None = None) -> Any:
    """Download a data set, or take it from the cache.

    Args:
        name: Its name, such as "nyu-mll/glue".
        split: The split; None for "train".
        subset: The subset; None for the only or default one.

    Raises:
        DataError: If `datasets` is not installed, or there is no such data set, subset or split.
    """
    missing = f"There is no file {name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME] + '...'}"
    if len(name) > LONGEST_NAME or not HUB_NAME.fullmatch(name):
        raise DataError(f"{missing}, and that is no name of a data set on the hub.")
    require(f"{missing}, and a data set on the hub", "datasets", error=DataError)
    import datasets
    from datasets import packaged_modules

    if hasattr(packaged_modules, name):  # load_dataset("text") would read the files in this folder
        raise DataError(f"{missing}, and {name} is a format, not a data set on the hub.")
    try:
        return datasets.load_dataset(name, subset, split=split or "train")
    except Exception as error:  # the hub, the network and the data set's files fail in their own ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{missing}, and the hub gives no such data set: {reason}") from error
