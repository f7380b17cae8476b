"""What a target is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from qdqpatch.engines.homes import ONNX_FOLDER
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
        file: The file that the engine loads, by its path in a folder.
        write: Writes the graph as that file, with what belongs to it.
        engine: Where the file is checked; None if that cannot be.
        kernels: Lists the kernels with matmuls that the engine makes of a file; None if it cannot say.
        signed: Whether it has signed levels alone.
        float8: Whether it has FP8 (E4M3).
        domains: Versions of operators other than ONNX's own.
        cpu: The processors that its form is for, one of `qdqpatch.choices.CPUS`; None for any.
    """

    name: str
    opset: int
    passes: Sequence[Sequence[RewriteRule]]
    file: str
    write: Callable[[ir.Model, Path], None]
    engine: Engine | None = None
    kernels: Callable[[Path], list[Kernel]] | None = None
    signed: bool = False
    float8: bool = False
    domains: dict[str, int] = field(default_factory=dict)
    cpu: str | None = None


ONNX_FILE = "model.onnx"
ONNX_PATH = f"{ONNX_FOLDER}/{ONNX_FILE}"

LARGEST = 1_800_000_000
"""So many bytes of weights go into the file: protobuf ends at 2 GB, and the graph needs some of it."""


def write_onnx(model: ir.Model, file: Path, largest: int = LARGEST) -> None:
    """Write an ONNX file; more than `largest` bytes of weights go into `NAME.onnx_data` beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    constants = (value.const_value for value in model.graph.initializers.values())
    size = sum(constant.nbytes for constant in constants if constant is not None)
    ir.save(model, file, external_data=f"{file.name}_data" if size > largest else None)
