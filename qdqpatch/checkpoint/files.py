"""Find the files of a checkpoint, in a folder or on the hub."""

from __future__ import annotations

import re
from typing import Any

from transformers.utils import cached_file

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
"""What a model or a data set on the hub can be called."""


def find_file(source: str, name: str, **hub: Any) -> str | None:
    """Return the local path of a checkpoint's file, downloaded if need be; None if it has no such file.

    Args:
        source: A folder, or a model's name on the hub.
        name: The file's name in it.
        **hub: How to reach the hub, such as `revision` and `token`.
    """
    path: str | None = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub)
    return path
