"""The hidden folder in which something is written before it takes its place.

It holds `new`, what is written; `old`, what was in its place; the list of the moves between them; and a lock,
which tells the folder of a run that goes on from one that a run left behind when it was killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from qdqpatch.errors import CheckpointError
from qdqpatch.output.locks import acquire, turn
from qdqpatch.output.manifest import MANIFEST, foreign, some
from qdqpatch.output.moves import DONE, LIST, Move, make_moves, settle_moves

LOCK, NEW, OLD = "lock", "new", "old"

NAME_BYTES = 200
"""So much of a name goes into that of the hidden folder, which may have 255."""


class Work:
    """A hidden folder of this process.

    Attributes:
        new: The folder to write to.
        old: The folder for what was in its place.
    """

    def __init__(self, parent: Path, name: str = "") -> None:
        """Make it.

        Args:
            parent: The folder to make it in.
            name: Of what is written, if that lies in `parent`; none if that is `parent` itself.

        Raises:
            OSError: If it cannot be made.
        """
        self.parent = parent
        while not self._made(Path(tempfile.mkdtemp(prefix=prefix(name), dir=parent))):
            pass

    def _made(self, folder: Path) -> bool:
        """Lock and fill a folder that is new; False if another run took it for one that was left behind."""
        self.folder, self.new, self.old = folder, folder / NEW, folder / OLD
        try:
            if not self._locked(folder):
                return False
            self.new.mkdir()
            self.old.mkdir()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return True

    def _locked(self, folder: Path) -> bool:
        try:
            self._lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o666)
        except FileNotFoundError:
            return False
        acquire(self._lock, wait=True)
        with contextlib.suppress(FileNotFoundError):  # removed, while this process waited for the lock
            if os.path.samestat(os.fstat(self._lock), (folder / LOCK).stat()):
                return True
        os.close(self._lock)
        return False

    def give_usual_modes(self) -> None:
        """Let what was written have the permissions of any new file and folder, as the umask says."""
        file_mode = stat.S_IMODE((self.folder / LOCK).stat().st_mode)
        folder_mode = stat.S_IMODE(self.old.stat().st_mode)
        for root, folders, files in os.walk(self.new):
            for name in folders:
                os.chmod(Path(root) / name, folder_mode)
            for name in files:
                os.chmod(Path(root) / name, file_mode)

    def move(
        self, plan: Callable[[], tuple[Sequence[Move], Sequence[Move]]], verify: Callable[[], None]
    ) -> None:
        """Make moves while no other run moves anything here; those made before an error `close` undoes.

        Args:
            plan: Looks again whether they may be made, and returns those aside and those into place.
            verify: Looks whether what was moved aside is what was meant.
        """
        with turn(self.parent):
            aside, into_place = plan()
            make_moves(self.folder, aside, into_place, verify)

    def close(self) -> None:
        """Undo moves unless all were made, and remove the folder."""
        try:
            self._settle()
        except (KeyboardInterrupt, SystemExit):  # it can be begun again at any point
            self._settle()
            raise
        finally:
            os.close(self._lock)

    def _settle(self) -> None:
        with turn(self.parent):
            _settle(self.folder)


def prefix(name: str = "") -> str:
    """Return what the names of hidden folders begin with, for what is written under a name."""
    short = os.fsdecode(os.fsencode(name)[:NAME_BYTES])
    return f".{short}.qdqpatch-" if name else ".qdqpatch-"


def is_work(folder: Path) -> bool:
    """Return whether a folder with such a name is really one of ours: there is nothing else in it."""
    try:
        return {*os.listdir(folder)} <= {LOCK, NEW, OLD, LIST, DONE} and not folder.is_symlink()
    except OSError:
        return False


def clean_up(parent: Path, name: str = "") -> None:
    """Undo what runs that were killed had begun, and remove what they left; arguments as of `Work`.

    Raises:
        CheckpointError: If something cannot be put back where it was.
    """
    start = prefix(name)
    try:
        found = [parent / entry for entry in os.listdir(parent) if entry.startswith(start)]
    except OSError:
        return
    if not found:
        return
    with turn(parent):
        for folder in found:
            if is_work(folder):
                _clean_up(folder)


def _clean_up(folder: Path) -> None:
    try:
        lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o666)
    except OSError:  # another user's, or on a disk that can only be read
        return
    try:
        if acquire(lock, wait=False):
            _settle(folder)
    finally:
        os.close(lock)


def _settle(folder: Path) -> None:
    """End what a run had begun, one way or the other, and remove its folder.

    A kill in between loses nothing: what can be undone is listed until all of it is undone, and what was
    replaced is removed before the sign that it was.
    """
    new, old = folder / NEW, folder / OLD
    if not settle_moves(folder):
        if old.is_dir() and os.listdir(old):
            raise CheckpointError(
                f"{old} holds what was to be replaced and could not be put back. Move it to where it was."
            )
        if (folder / LIST).exists() and (new / MANIFEST).exists() and (changed := foreign(new)):
            raise CheckpointError(f"{new} holds what was changed since it was written: {some(changed)}.")
        (folder / LIST).unlink(missing_ok=True)
    for name in (OLD, NEW):
        shutil.rmtree(folder / name, ignore_errors=True)
    if not (folder / OLD).exists():
        for name in (LIST, DONE):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
