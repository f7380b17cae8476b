"""What a model takes on disk: graph and weights, without the tokenizer."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qdqpatch.checkpoint.source import open_checkpoint
from qdqpatch.engines.contenders import TORCH, Contender
from qdqpatch.errors import EngineError
from qdqpatch.packages import require


def size_on_disk(contender: Contender) -> int:
    """Return the bytes of the files that the engine reads.

    Raises:
        CheckpointError: If a checkpoint has no weights.
        EngineError: If a package to read the file with is not installed.
    """
    path = Path(contender.path)
    if contender.engine == TORCH:
        files = [Path(file) for file in open_checkpoint(contender.path).weight_files()]
    elif path.suffix == ".xml":
        files = [path, path.with_suffix(".bin")]
    else:
        files = [path, *_external_files(path)]
    return sum(file.stat().st_size for file in files if file.is_file())


def _external_files(path: Path) -> set[Path]:
    """Return the files outside an ONNX file that its tensors lie in."""
    require("Reading .onnx files", "onnx", error=EngineError)
    onnx: Any = importlib.import_module("onnx")
    helper: Any = importlib.import_module("onnx.external_data_helper")
    model = onnx.load(str(path), load_external_data=False)
    tensors = [*_tensors(model.graph)]
    for function in model.functions:
        tensors += _tensors_of(function.node)
    outside = filter(helper.uses_external_data, tensors)
    return {path.parent / helper.ExternalDataInfo(tensor).location for tensor in outside}


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    yield from _tensors_of(graph.node)


def _tensors_of(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for graph in (attribute.g, *attribute.graphs):
                yield from _tensors(graph)
