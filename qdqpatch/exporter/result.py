"""What an export tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qdqpatch.engines.tensorrt.build import Build
from qdqpatch.exporter.check import OutputComparison
from qdqpatch.exporter.kernels import Operation


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        folder: Where it is.
        file: What the engine loads.
        target: The engine's name.
        size: Bytes of the model's files.
        operations: The model's matmuls and how the engine computes them; None where it is not known.
        comparisons: The differences to the patched model; None if it was not checked.
        engine: Name and version of the engine that it was checked in.
        float_matmuls: Whether it was checked with the products in fp32, because the engine's integer kernels
            saturate on this processor: the file is right where there is VNNI, and its outputs are not here.
        builds: The file as TensorRT for RTX compiled it, one for each compute capability that was asked for.
        also: What was written for the other targets, where several were asked for.
    """

    folder: Path
    file: Path
    target: str
    size: int
    operations: list[Operation] | None
    comparisons: list[OutputComparison] | None
    engine: str | None
    float_matmuls: bool = False
    builds: tuple[Build, ...] = ()
    also: tuple[Export, ...] = ()
