"""A file that is written for a user: whole or not at all, and only over one that we wrote."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from qdqpatch.errors import QdqError, ReportError
from qdqpatch.output.inputs import Inputs
from qdqpatch.output.work import Work, clean_up

HTML_MARK = b'<meta name="generator" content="qdqpatch">'
PNG_MARK = b"Software\0qdqpatch"
SVG_MARK = b"<dc:title>qdqpatch</dc:title>"

HEAD = 4096
"""The marks are within so many bytes of a file's beginning."""

Ours = Callable[[Path], bool]
"""Says whether we wrote a file that is there."""


def has_mark(file: Path) -> bool:
    """Return whether a page or a picture says that qdqpatch wrote it."""
    with open(file, "rb") as stream:
        head = stream.read(HEAD)
    return any(mark in head for mark in (HTML_MARK, PNG_MARK, SVG_MARK))


def check_file(file: Path, ours: Ours = has_mark, inputs: Mapping[str, Any] | None = None) -> None:
    """Find out before the work whether a file can be written.

    Args:
        file: The file.
        ours: Whether one that is there may be replaced.
        inputs: What is read and must stay, by what it is called.

    Raises:
        ReportError: If it cannot, or would replace what is read or what we did not write.
    """
    with _failures(file):
        path = file.resolve()
        Inputs.of(inputs or {}).check_file(file, path)
        clean_up(path.parent, path.name)
        _check_content(file, path, ours)
        folder = next(parent for parent in path.parents if parent.exists())
        tempfile.TemporaryFile(dir=folder).close()


def replace_file(file: Path, write: Callable[[Path], object], ours: Ours = has_mark) -> None:
    """Write a file beside its place and move it there when it is complete; folders are made.

    Args:
        file: The file.
        write: Writes it to the path that it is given.
        ours: Whether one that is there may be replaced.

    Raises:
        ReportError: If it cannot be written. What was there before is there still.
    """
    check_file(file, ours)
    with _failures(file):
        path = file.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Work(path.parent, path.name)
        try:
            new, old = work.new / "file", work.old / "file"
            write(new)
            work.give_usual_modes()
            work.move(
                lambda: ([(path, old)] if os.path.lexists(path) else [], [(new, path)]),
                lambda: _check_content(file, old, ours),
            )
        finally:
            work.close()


def _check_content(file: Path, path: Path, ours: Ours) -> None:
    try:
        path.lstat()
    except FileNotFoundError:
        return
    if not path.is_file():
        raise ReportError(f"Cannot write {file}: it is there and not a file.")
    if not ours(path):
        raise ReportError(
            f"{file} is there, and is not one that qdqpatch wrote: it is not replaced. Choose another name."
        )


@contextlib.contextmanager
def _failures(file: Path) -> Iterator[None]:
    try:
        yield
    except ReportError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, QdqError) and not isinstance(error, OSError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ReportError(f"Cannot write {file}: {reason}.") from error
