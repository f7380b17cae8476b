"""What a target is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from qdqpatch.engines.sessions import Engine
from qdqpatch.exporter.kernels import Kernel
from qdqpatch.exporter.rules.base import RewriteRule


@dataclass(frozen=True)
class Target:
    """An engine to export for.

    Attributes:
        name: As `export(target=...)` takes it.
        opset: Version of ONNX's operators.
        passes: Rules, in the order in which they are applied; those of one pass together.
        file: The file that the engine loads.
        write: Writes the graph to a folder, as that file and what belongs to it.
        engine: Where the file is checked; None if that cannot be.
        kernels: Lists the kernels with matmuls that the engine makes of a file; None if it cannot say.
        signed: Whether it has signed levels alone.
        domains: Versions of operators other than ONNX's own.
    """

    name: str
    opset: int
    passes: Sequence[Sequence[RewriteRule]]
    file: str
    write: Callable[[ir.Model, Path], None]
    engine: Engine | None = None
    kernels: Callable[[Path], list[Kernel]] | None = None
    signed: bool = False
    domains: dict[str, int] = field(default_factory=dict)


ONNX_FILE = "model.onnx"


def write_onnx(model: ir.Model, folder: Path) -> None:
    """Write model.onnx, with its large tensors in model.onnx.data beside it."""
    ir.save(model, folder / ONNX_FILE, external_data=f"{ONNX_FILE}.data")
