"""The files that hold a checkpoint's weights: one, or those that an index names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qdqpatch.checkpoint.files import find_file
from qdqpatch.errors import CheckpointError, one_line

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The names of a checkpoint's weights, in the order in which transformers looks for them."""

EXPORTED = ("onnx/model.onnx", "openvino/openvino_model.xml")
"""The files of an exported model."""


def has_weights(name: str, **hub: Any) -> bool:
    """Whether a folder, or a model on the hub, has weights for torch; `hub` is that of `find_file`."""
    files = [f"{weights}{index}" for weights in WEIGHTS for index in ("", ".index.json")]
    return any(find_file(name, file, **hub) for file in files)


def weight_files(checkpoint: str) -> list[str]:
    """Return the paths of the files that hold the weights.

    Args:
        checkpoint: A folder, or a model's name on the hub.

    Raises:
        CheckpointError: If there is none, or one that the index names is missing.
    """
    for weights in WEIGHTS:
        if file := find_file(checkpoint, weights):
            return [file]
        if index := find_file(checkpoint, f"{weights}.index.json"):
            names = _names_in(index)
            files = [(name, find_file(checkpoint, name)) for name in names]
            if missing := [name for name, file in files if file is None]:
                raise CheckpointError(f"{checkpoint} lacks {', '.join(missing)}, which its index names.")
            return [file for _, file in files if file is not None]
    more = " It holds an exported model: name the checkpoint it is from." if _is_export(checkpoint) else ""
    raise CheckpointError(f"{checkpoint} has no weights: neither {' nor '.join(WEIGHTS)} is there.{more}")


def _is_export(checkpoint: str) -> bool:
    return any((Path(checkpoint) / file).is_file() for file in EXPORTED)


def _names_in(index: str) -> list[str]:
    """Return the files that an index of shards names."""
    try:
        data = json.loads(Path(index).read_text(encoding="utf-8"))
        names = sorted(set(data["weight_map"].values()))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"Cannot read {index}: {one_line(error)}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is no index of weights: it has no weight_map of file names."
        ) from error
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise CheckpointError(f"{index} is no index of weights: its weight_map names no files beside it.")
    return names
