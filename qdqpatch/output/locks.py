"""Locks on files and folders, which end with the process that holds them, however it ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def acquire(descriptor: int, wait: bool) -> bool | None:
    """Lock an open file; closing it unlocks it.

    Args:
        descriptor: Of the file or folder.
        wait: Whether to wait for another process that holds the lock.

    Returns:
        Whether it is locked now, not another's; None where the file system has no locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Let one process after the other change what is in a folder, where its file system has locks."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        acquire(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)
