"""What an export tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qdqpatch.engines.tensorrt.build import Build
from qdqpatch.exporter.check import OutputComparison
from qdqpatch.exporter.kernels import Operation
from qdqpatch.patching.folding import fold
from qdqpatch.spelling import counted, spelled


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

    def lines(self, taken: str = "") -> list[str]:
        """Say what was written, how it was compared, and which matmuls stayed float.

        Args:
            taken: What stands behind the size, such as the time that it took.
        """
        said = [f"Wrote {self.file}: {self.size / 1e6:.1f} MB for {self.target}{taken}."]
        if self.operations is not None:
            left = [operation for operation in self.operations if not operation.integer]
            rows = fold((operation.name, "", operation.reason) for operation in left)
            said += [
                f"{len(self.operations) - len(left)} of {counted(len(self.operations), 'matmul')} run as "
                "integer kernels" + (". Float:" if left else "."),
                *(f"  {path}: {reason}" for path, _, reason in rows),
            ]
        if self.comparisons is None:
            said += [f"Not compared with the model: {spelled('check=False', '--no-check')}."]
        said += [self._compared(comparison) for comparison in self.comparisons or ()]
        if self.float_matmuls:
            said += [
                f"It was compared with products in fp32: {self.engine}'s integer kernels saturate on this "
                "processor, which has no VNNI. Run the file where there is VNNI."
            ]
        return said

    def _compared(self, comparison: OutputComparison) -> str:
        predictions = (
            f"; {comparison.changed} of {counted(comparison.predictions, 'prediction')} differ"
            if comparison.predictions
            else ""
        )
        return (
            f"Compared with the model in {self.engine}: {comparison.output} differs by "
            f"{comparison.mean:.2f} steps in the mean and {comparison.largest:.1f} at most (a step is 1/127 "
            f"of its range){predictions}."
        )

    def __repr__(self) -> str:
        """Return what is said of all that was written, for who looks at it in a notebook."""
        return "\n".join(line for export in (self, *self.also) for line in export.lines())
