"""Which folders cannot be replaced by a rename, and have to be filled where they are."""

from __future__ import annotations

import os
import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
"""Linux's list of what is mounted where; also of folders of the same disk, as containers mount them."""


def must_stay(folder: Path) -> bool:
    """Return whether a folder is mounted, a process's current one, or in one that cannot be changed.

    Args:
        folder: A folder, without links in its path.
    """
    return (
        _holds_current(folder)
        or os.path.ismount(folder)
        or any(folder in (mount, *mount.parents) for mount in _mounts())
        or not os.access(folder.parent, os.W_OK | os.X_OK)
    )


def _holds_current(folder: Path) -> bool:
    try:
        here = Path.cwd().resolve()
    except OSError:  # it is gone
        return False
    return folder in (here, *here.parents)


def _mounts() -> list[Path]:
    try:
        lines = MOUNTS.read_bytes().splitlines()
    except OSError:
        return []
    return [Path(os.fsdecode(_unescaped(line.split(b" ")[4]))) for line in lines]


def _unescaped(path: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), path)
