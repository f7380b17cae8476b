"""Write a folder whole or not at all: beside its place first, then renamed into it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from qdqpatch.errors import CheckpointError


def check_output(out: Path, source: str | None, force: bool) -> None:
    """Find out before the work whether the folder can be written.

    Args:
        out: The folder to write.
        source: The checkpoint to read, which must not be written over; None if there is none.
        force: Whether a folder with files in it may be replaced.

    Raises:
        CheckpointError: If it cannot be written, or must not.
    """
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file; name a folder to write to.")
    if source is not None and out.resolve() == Path(source).resolve() and out.exists():
        raise CheckpointError(f"{out} is the checkpoint that is read; write to another folder.")
    if source is not None and Path(source).exists() and out.resolve() in Path(source).resolve().parents:
        raise CheckpointError(f"{out} holds the checkpoint that is read, and would be replaced whole.")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise CheckpointError(f"{out} is not empty. Choose another folder, or replace it with --force.")
    parent = _existing_parent(out)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"Cannot write to {out}: {parent} is not a folder that you may write in.")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give a new folder beside `out`, and let it take the place of `out` if the block succeeds.

    Whatever stood at `out` is moved aside by a rename, back if anything fails, and else deleted.

    Raises:
        CheckpointError: If writing fails; nothing is left behind then.
    """
    try:
        # Missing parents are made at the end, so that a failure does not leave them.
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=_existing_parent(out)))
    except OSError as error:
        raise CheckpointError(f"Cannot write to {out}: {error.strerror}.") from error
    try:
        staging.chmod(0o777 & ~_umask())  # mkdtemp makes folders that only their owner can read
        yield staging
        _replace(out, staging)
    except (OSError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise CheckpointError(f"Cannot write {out}: {reason}. Nothing was left behind.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace(out: Path, staging: Path) -> None:
    """Put the new folder in its place; an old one there is deleted only once that is done."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.exists():
        staging.rename(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    old = aside / out.name
    try:
        out.rename(old)
        staging.rename(out)
    except BaseException:  # an interrupt too must not cost the old folder
        if old.exists() and not out.exists():
            old.rename(out)
        if not old.exists():
            aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
