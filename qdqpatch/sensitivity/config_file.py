"""The file of what a search found: a configuration, as `qdqpatch convert --config` reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdqpatch.config.config import QDQConfig
from qdqpatch.errors import ConfigError, OccupiedError
from qdqpatch.output.file import check_file, replace_file
from qdqpatch.spelling import spelled


def check_config_file(file: Path, force: bool, inputs: Mapping[str, Any] | None = None) -> None:
    """Find out before the work whether the file can be written.

    Args:
        file: The file.
        force: Whether a configuration that we wrote there before may be replaced.
        inputs: What is read and must stay, by what it is called.

    Raises:
        OccupiedError: If there is one, and `force` is not set.
        ReportError: If it cannot be written, or would replace another file.
    """
    check_file(file, lambda there: _may_replace(there, force), inputs)


def write_config_file(file: Path, config: QDQConfig, force: bool) -> None:
    """Write a configuration; arguments and errors as of `check_config_file`."""
    text = _text(config)
    replace_file(
        file,
        lambda staging: staging.write_text(text, encoding="utf-8"),
        lambda there: _may_replace(there, force),
    )


def _may_replace(file: Path, force: bool) -> bool:
    """Return whether a file is just as we write one; only then is it said that it may be replaced."""
    try:
        ours = file.read_text(encoding="utf-8") == _text(QDQConfig.from_json_file(file))
    except (ConfigError, ValueError):
        return False
    if ours and not force:
        raise OccupiedError(
            f"{file} is there. Choose another name. To replace what is there: "
            f"{spelled('force=True', '--force')}."
        )
    return ours


def _text(config: QDQConfig) -> str:
    return json.dumps(config.to_dict(), indent=2) + "\n"
