"""What a target is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from qdqpatch.engines import Engine
from qdqpatch.exporter.rules.base import Rule


@dataclass(frozen=True)
class Operation:
    """A matrix multiplication of a quantized model, and how the engine computes it.

    Attributes:
        name: The path of its module, with `.query_x_key` or `.probabilities_x_value` for attention's.
        integer: Whether an integer kernel computes it.
        kernel: What the engine calls the kernel.
    """

    name: str
    integer: bool
    kernel: str


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
        operations: Lists how the engine computes each matmul of a file; None if it cannot say.
    """

    name: str
    opset: int
    passes: Sequence[Sequence[Rule]]
    file: str
    write: Callable[[ir.Model, Path], None]
    engine: Engine | None = None
    operations: Callable[[Path], list[Operation]] | None = None
    domains: dict[str, int] = field(default_factory=dict)


ONNX_FILE = "model.onnx"


def write_onnx(model: ir.Model, folder: Path) -> None:
    """Write model.onnx, with its large tensors in model.onnx.data beside it."""
    ir.save(model, folder / ONNX_FILE, external_data=f"{ONNX_FILE}.data")
