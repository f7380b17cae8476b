"""Folders for what is needed only for a while, where the system has its temporary files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qdqpatch.output.folder import failures_of_writing


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder that is gone after the block.

    Raises:
        CheckpointError: If something cannot be written in the block, as where that disk is full.
    """
    with failures_of_writing("a temporary file"):
        place = tempfile.gettempdir()
    remedy = "The variable TMPDIR names another folder for temporary files."
    with failures_of_writing(place, remedy), tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
