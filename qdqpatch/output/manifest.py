"""The list, in a folder that we wrote, of the files that we wrote: what else is there is a user's own."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

MANIFEST = "qdqpatch.json"
"""The file at the folder's root; its section `files` has the SHA-256 of each file by its path."""

SECTION = "files"

CHUNK = 1 << 20

NAMED = 5
"""So many names are listed in a message."""


def write_manifest(folder: Path, joins: Path | None = None) -> None:
    """List the files of a folder in its manifest; other sections of one that is there stay.

    Args:
        folder: The folder.
        joins: The folder that the files will join; what its manifest says of others is taken over.
    """
    data = {} if joins is None else _read(joins / MANIFEST) or {}
    data |= _read(folder / MANIFEST) or {}
    before = {} if joins is None else data.get(SECTION, {})
    files = sorted(path for path in _files(folder) if path != MANIFEST)
    data[SECTION] = before | {path: _digest(folder / path) for path in files}
    (folder / MANIFEST).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def add_sections(folder: Path, **sections: Any) -> None:
    """Write sections of the manifest beside the list of files; those of the same names are replaced."""
    data = (_read(folder / MANIFEST) or {}) | sections
    (folder / MANIFEST).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def read_sections(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder; empty where there is none."""
    return _read(folder / MANIFEST) or {}


def foreign(folder: Path, also: re.Pattern[str] | None = None, skip: Iterable[str] = ()) -> list[str]:
    """Return what in a folder is not recognisably ours: not in its manifest, or changed since.

    Args:
        folder: The folder.
        also: Matches paths in it that are ours too, with slashes; those of folders end in one.
        skip: Names at its root that are not looked at.

    Returns:
        Paths in the folder; a folder that holds nothing of ours stands for all that is in it.
    """
    data = _read(folder / MANIFEST)
    ours = data.get(SECTION) if data is not None else None
    if not isinstance(ours, dict):
        ours = {}
    if not ours and also is None:
        return sorted(name for name in os.listdir(folder) if name not in skip)
    folders = {f"{parent.as_posix()}/" for path in ours for parent in Path(path).parents} | {"./"}
    found = []
    for root, names, files in os.walk(folder):
        place = Path(root).relative_to(folder)
        if place == Path():
            names[:] = [name for name in names if name not in skip]
            files = [name for name in files if name not in {MANIFEST, *skip}]
        for name in list(names):
            path = f"{(place / name).as_posix()}/"
            if (Path(root) / name).is_symlink() or not (path in folders or _matches(also, path)):
                names.remove(name)
                found.append(path)
        for name in files:
            path = (place / name).as_posix()
            if _matches(also, path):
                continue
            if path not in ours:
                found.append(path)
            elif not _is_file(folder / path, ours[path]):
                found.append(f"{path} (changed since)")
    return sorted(found)


def has_manifest(folder: Path) -> bool:
    """Return whether we wrote a folder, or a part of what is in it."""
    return isinstance((_read(folder / MANIFEST) or {}).get(SECTION), dict)


def some(names: list[str]) -> str:
    """Return the first of some names, and how many there are more."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _matches(pattern: re.Pattern[str] | None, path: str) -> bool:
    return pattern is not None and pattern.fullmatch(path) is not None


def _is_file(file: Path, digest: object) -> bool:
    return stat.S_ISREG(file.lstat().st_mode) and _digest(file) == digest


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[str]:
    for root, _, names in os.walk(folder):
        for name in names:
            yield (Path(root) / name).relative_to(folder).as_posix()


def _read(file: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None
