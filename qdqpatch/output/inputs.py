"""What a command reads, which stays whatever is written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdqpatch.errors import CheckpointError, ReportError


@dataclass(frozen=True)
class Inputs:
    """What is read and must stay.

    Attributes:
        places: Where each input is, by what messages call it: by the path that was given, and where links
            lead; nothing for what is no path here, such as a name on the hub.
    """

    places: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, named: Mapping[str, Any]) -> Inputs:
        """Take paths, or several, by what they are called; None or an empty text for what is not read.

        Raises:
            OSError: If the current folder is gone.
        """
        return cls({name: tuple(_places(given)) for name, given in named.items()})

    def check_folder(self, given: Path, path: Path) -> None:
        """Find out whether a folder can be written without loss of an input.

        Args:
            given: Its name, for the message.
            path: The folder, without links.

        Raises:
            CheckpointError: If it is an input, or holds one.
        """
        for name, places in self.places.items():
            if path in places:
                raise CheckpointError(f"{given} is {name} that is read; write to another folder.")
            if any(path in place.parents for place in places):
                raise CheckpointError(f"{given} holds {name} that is read; write to another folder.")

    def check_file(self, given: Path, path: Path) -> None:
        """Find out whether a file can be written without loss of an input; arguments as of `check_folder`.

        Raises:
            ReportError: If it is an input.
        """
        for name, places in self.places.items():
            if path in places:
                raise ReportError(f"{given} is {name} that is read; write to another file.")


def _places(given: Any) -> Iterable[Path]:
    for one in (given,) if isinstance(given, str | Path) else given or ():
        if not str(one):
            continue
        place = Path(os.path.abspath(one))
        if os.path.lexists(place):
            yield place
            yield place.resolve()
