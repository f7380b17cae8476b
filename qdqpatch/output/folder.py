"""A folder that is written for a user: looked at before the work, written beside, then moved into place."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from qdqpatch.errors import CheckpointError, OccupiedError, QdqError
from qdqpatch.output.inputs import Inputs
from qdqpatch.output.manifest import MANIFEST, foreign, some, write_manifest
from qdqpatch.output.moves import Move
from qdqpatch.output.places import must_stay
from qdqpatch.output.work import Work, clean_up, is_work, prefix
from qdqpatch.spelling import spelled

NOT_CONTENT = ("lost+found",)
"""What a disk's root has of its own."""

FILES = (".onnx", ".xml")
"""How the names of exported files end, which is no name for a folder that has them."""

TORCH_WRITERS = ("PytorchStreamWriter", "inline_container", "iostream error")
"""What of torch fails, by a RuntimeError, where it cannot write."""


@dataclass(frozen=True)
class OutputFolder:
    """A folder to write. What is in it is replaced only if all of it is ours, and only by `force`.

    Attributes:
        given: Its name as the user gave it, for messages.
        path: The same without links, and wherever the process goes.
        inputs: What is read and must stay.
        force: Whether what we wrote there before may be replaced.
        also: Matches paths in it that are ours though its manifest does not list them, as `foreign` does.
        only: The names that are written, where other files in the folder stay; None if all is replaced.
    """

    given: Path
    path: Path
    inputs: Inputs
    force: bool = False
    also: re.Pattern[str] | None = None
    only: tuple[str, ...] | None = None

    @classmethod
    def open(
        cls,
        out: str | Path,
        inputs: Mapping[str, Any] | None = None,
        force: bool = False,
        also: re.Pattern[str] | None = None,
        only: tuple[str, ...] | None = None,
    ) -> OutputFolder:
        """Find out before the work whether the folder can be written.

        Args:
            out: The folder.
            inputs: What is read and must stay, by what it is called: files, folders, or names on the hub.
            force: As the attribute; `also` and `only` too.
            also: See there.
            only: See there.

        Raises:
            OccupiedError: If it holds what we wrote, and `force` is not set.
            CheckpointError: If it cannot be written, or must not.
        """
        given = Path(out)
        try:
            path = given.resolve()
            read = Inputs.of(inputs or {})
        except (OSError, RuntimeError) as error:  # a loop of links, or a current folder that is gone
            raise CheckpointError(f"Cannot write to {given}: {_reason(error)}.") from error
        folder = cls(given, path, read, force, also, only)
        with _failures(given):
            folder.check()
        return folder

    def check(self) -> None:
        """Put in order what killed runs left, then find out whether the folder can be written.

        Raises:
            OccupiedError: If it holds what we wrote, and `force` is not set.
            CheckpointError: If it cannot be written, or must not.
        """
        if self.path.exists() and not self.path.is_dir():
            raise CheckpointError(f"{self.given} is a file; name a folder to write to.")
        if self.path.suffix in FILES and not self.path.exists():
            raise CheckpointError(
                f"{self.given} is the name of a file, and what is written is a folder with the file in it: "
                f"leave {self.path.suffix} out."
            )
        self.inputs.check_folder(self.given, self.path)
        clean_up(self.path.parent, self.path.name)
        clean_up(self.path)
        self._check_content()
        parent = self.path if self._stays else _existing(self.path.parent)
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise CheckpointError(
                f"Cannot write to {self.given}: {parent} is not a folder that you may write in."
            )

    @contextlib.contextmanager
    def staged(self) -> Iterator[Path]:
        """Give a folder to write to, and let it take the place of this one if the block succeeds.

        An empty folder that is there is filled, and a folder that cannot be moved too, such as a disk's
        root; else the new one takes its place by a rename. Whether it may is looked at once more then.

        Raises:
            CheckpointError: If writing fails, or what may not be replaced appeared meanwhile. Then
                everything is as it was.
        """
        with _failures(self.given), self._work() as work:
            yield work.new
            write_manifest(work.new, None if self.only is None else self.path)
            work.give_usual_modes()
            work.move(lambda: self._moves(work), lambda: self._verify(work))

    def remove(self) -> None:
        """Remove the folder, at once for all who look; only if all that is in it is ours.

        A folder that cannot be moved, such as a disk's root, stays, and what is in it goes.

        Raises:
            CheckpointError: If it holds something else, or cannot be removed. Then it is as it was.
        """
        if not self.path.is_dir():
            return
        with _failures(self.given), self._work() as work:
            work.move(lambda: (self._aside(work), ()), lambda: self._verify(work))

    @contextlib.contextmanager
    def _work(self) -> Iterator[Work]:
        """Make the hidden folder and the folders above it; remove them if nothing takes its place there."""
        made = [folder for folder in self.path.parents if not folder.exists()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            work = Work(self.path) if self._stays else Work(self.path.parent, self.path.name)
            try:
                yield work
            finally:
                work.close()
        finally:
            for folder in made:
                with contextlib.suppress(OSError):  # it holds what was written
                    folder.rmdir()

    @property
    def _stays(self) -> bool:
        return self.path.is_dir() and (self.only is not None or not self._content() or must_stay(self.path))

    def _content(self) -> list[str]:
        """Return the names of what would be replaced, without what runs are writing there."""
        start = prefix()
        return [
            name
            for name in sorted(os.listdir(self.path))
            if name not in NOT_CONTENT
            and (self.only is None or name in {MANIFEST, *self.only})
            and not (name.startswith(start) and is_work(self.path / name))
        ]

    def _check_content(self) -> None:
        if not self.path.is_dir() or not self._content():
            return
        skip = {*os.listdir(self.path)} - {*self._content()}
        if others := foreign(self.path, self.also, skip):
            raise CheckpointError(_refusal(self.given, others))
        if not self.force:
            raise OccupiedError(
                f"{self.given} is not empty. Choose another folder. To replace what is there: "
                f"{spelled('force=True', '--force')}."
            )

    def _moves(self, work: Work) -> tuple[Sequence[Move], Sequence[Move]]:
        if self.path.exists() and not self.path.is_dir():
            raise CheckpointError(f"{self.given} is a file; name a folder to write to.")
        self._check_content()
        if work.parent != self.path:
            if not self.path.exists():
                return (), [(work.new, self.path)]
            shutil.copymode(self.path, work.new)
            return self._aside(work), [(work.new, self.path)]
        # Without its config.json, a folder that is half replaced does not load.
        names = sorted(os.listdir(work.new), key=lambda name: (name == "config.json", name))
        return self._aside(work), [(work.new / name, self.path / name) for name in names]

    def _aside(self, work: Work) -> list[Move]:
        """Return the moves that take away what is there."""
        if work.parent != self.path:
            return [(self.path, work.old / self.path.name)]
        return [(self.path / name, work.old / name) for name in reversed(self._content())]

    def _verify(self, work: Work) -> None:
        """Look into what was moved aside, where nobody else writes any more."""
        old = work.old if work.parent == self.path else work.old / self.path.name
        if old.is_dir() and os.listdir(old) and (others := foreign(old, self.also)):
            raise CheckpointError(_refusal(self.given, others))


@contextlib.contextmanager
def failures_of_writing(out: str | Path, remedy: str = "") -> Iterator[None]:
    """Turn what the system and the libraries raise when something cannot be written into one line.

    Args:
        out: Where it is written.
        remedy: What can be done, as a sentence.

    Raises:
        CheckpointError: If so.
    """
    with _failures(Path(out), f" {remedy}" if remedy else ""):
        yield


@contextlib.contextmanager
def _failures(given: Path, remedy: str = "") -> Iterator[None]:
    try:
        yield
    except QdqError:
        raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot write {given}: {_reason(error)}.{remedy}") from error
    except RuntimeError as error:
        if not any(name in str(error) for name in TORCH_WRITERS):
            raise
        raise CheckpointError(f"Cannot write {given}: the disk may be full.{remedy}") from error


def _reason(error: BaseException) -> str:
    """Return what went wrong; what the system said, if safetensors hands that on."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    handed_on = re.search(r"I/O error: (.*?) \(os error", str(error))
    return handed_on[1] if handed_on else str(error)


def _refusal(given: Path, others: list[str]) -> str:
    return (
        f"{given} is not empty, and qdqpatch did not write all that is in it: {some(others)}. "
        "Choose another folder, or move that away."
    )


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())
