"""Where a model's config lies, in its folder or above that of an exported file, and what it says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from qdqpatch.data.lengths import positions_for_tokens
from qdqpatch.errors import CheckpointError

CONFIG = "config.json"

ONNX_FOLDER, IR_FOLDER = "onnx", "openvino"
"""Where servers look for exported files, in the folder that has the config."""


def home_of(path: Path) -> Path:
    """Return the folder with the config and the tokenizer of a model that is there, a folder or a file."""
    folder = path if path.is_dir() else path.parent
    is_part = folder.resolve().name in (ONNX_FOLDER, IR_FOLDER) and not (folder / CONFIG).is_file()
    return Path(os.path.normpath(folder / "..")) if is_part else folder


def read_config(path: Path) -> dict[str, Any] | None:
    """Return the config of a folder, or the one beside an exported file; None where there is none.

    Raises:
        CheckpointError: If it cannot be read.
    """
    file = home_of(path) / CONFIG
    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"Cannot read {file}: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"Cannot read {file}: it holds no object.")
    return data


def longest_of(path: Path) -> int | None:
    """Return the longest sequence of tokens that an exported file takes; None where no config says it."""
    try:
        longest = positions_for_tokens(read_config(path) or {})
    except CheckpointError:
        return None
    return longest if longest and longest > 0 else None
