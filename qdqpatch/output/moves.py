"""Renames that are made all or not at all: a list of them is written first, by which they can be undone."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Move = tuple[Path, Path]
"""From where to where."""

LIST, DONE = "moves.json", "done"


@dataclass(frozen=True)
class _Listed:
    """A move in the list, by the identity of what is moved."""

    source: Path
    target: Path
    device: int
    inode: int

    def there(self, path: Path) -> bool:
        """Return whether a path is what is moved, wherever that is now."""
        if not os.path.lexists(path):
            return False
        status = path.lstat()
        return (status.st_dev, status.st_ino) == (self.device, self.inode)

    @property
    def made(self) -> bool:
        """Whether the move was made, and nothing came into its place or its way since."""
        return self.there(self.target) and not os.path.lexists(self.source)


def make_moves(
    work: Path, aside: Sequence[Move], into_place: Sequence[Move], verify: Callable[[], None]
) -> None:
    """Write the list of the moves into a folder, and make them.

    Args:
        work: The folder.
        aside: Those of what is in the way.
        into_place: Those of what takes its place.
        verify: Called between them, to look whether what was moved aside is what was meant.

    Raises:
        FileExistsError: If something is where something is to go; it stays.
        OSError: If one cannot be made. Those before it are made, and `settle_moves` undoes them.
    """
    listed = []
    for source, target in (*aside, *into_place):
        status = source.lstat()
        names = [os.path.relpath(path, work) for path in (source, target)]
        listed.append([*names, status.st_dev, status.st_ino])
    (work / LIST).write_text(json.dumps({"moves": listed, "aside": len(aside)}), encoding="ascii")
    for source, target in aside:
        _move(source, target)
    verify()
    for source, target in into_place:
        _move(source, target)
    (work / DONE).touch()


def settle_moves(work: Path) -> bool:
    """Undo those moves that were made, the last one first, unless all were made.

    What has been put in the way of a move since, or in the place of what was moved, stays where it is.

    Returns:
        Whether all were made.
    """
    if (work / DONE).exists():
        return True
    moves, aside = _read(work)
    if len(moves) > aside and all(move.made for move in moves):  # what was moved aside was verified then
        (work / DONE).touch()
        return True
    for move in reversed(moves):
        if move.made:
            _move(move.target, move.source)
        elif move.there(move.target) and move.there(move.source):  # between the two steps of a file's move
            move.target.unlink()
    return False


def _read(work: Path) -> tuple[list[_Listed], int]:
    try:
        listed = json.loads((work / LIST).read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError, RecursionError):  # a list that is not whole was never begun
        return [], 0
    moves = [
        _Listed(_beside(work, source), _beside(work, target), device, inode)
        for source, target, device, inode in listed["moves"]
    ]
    return moves, listed["aside"]


def _beside(work: Path, path: str) -> Path:
    return Path(os.path.normpath(work / path))


def _move(source: Path, target: Path) -> None:
    """Rename, but not over a file or a folder with files in it."""
    if stat.S_ISREG(source.lstat().st_mode):
        try:
            os.link(source, target)
        except FileExistsError:
            raise
        except OSError as error:  # a file system without links
            if os.path.lexists(target):
                raise FileExistsError(f"{target} is there.") from error
        else:
            source.unlink()
            return
    os.rename(source, target)
