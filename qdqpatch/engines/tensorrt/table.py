"""What became of each operation of an encoder in a compiled engine, beside the same model in fp16."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qdqpatch.engines.shapes import Shape
from qdqpatch.engines.tensorrt.build import Build, build
from qdqpatch.engines.tensorrt.layers import Kernel
from qdqpatch.errors import EngineError
from qdqpatch.spelling import counted

_LIBRARY = ("gemm", "runtime_fusion")
"""Kinds of kernels that multiply: of several with parts of a Linear, the product is in the first of these."""

_PARTNER = {"query x key": "probabilities x value", "probabilities x value": "query x key"}
"""The two matmuls of an attention."""

_LAYER = re.compile(r"^\D*\d+")


class Operation(Protocol):
    """An operation of the ONNX graph, as `qdqpatch.lint` finds them."""

    @property
    def path(self) -> str:
        """Its module."""

    @property
    def operation(self) -> str:
        """What is computed."""

    @property
    def node(self) -> str:
        """The name of its node."""

    @property
    def norm(self) -> str:
        """The name of the LayerNorm's node behind a residual add."""


@dataclass(frozen=True)
class Row:
    """An operation in the engine.

    Attributes:
        path: Its module.
        operation: What is computed.
        kernel: The compiler's name of the kernel; empty if none tells.
        kind: What the kernel is.
        reads: The types of the activations that it reads.
        writes: The types of what it writes.
        fused: Of attention, whether both matmuls and softmax are one kernel; of a residual add, whether its
            LayerNorm is in the same.
    """

    path: str
    operation: str
    kernel: str
    kind: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    fused: bool | None = None

    @property
    def text(self) -> str:
        """What a table says of it."""
        if not self.kernel:
            return "in no kernel that tells"
        types = f"{', '.join(self.reads)} -> {', '.join(self.writes)}"
        if self.operation == "linear":
            return f"{self.kind}: {types}"
        if self.operation == "residual add":
            return f"{'with' if self.fused else 'without'} LayerNorm: {types}"
        return f"{'fused' if self.fused else 'not fused'}: {types}"


@dataclass(frozen=True)
class Layer:
    """What a layer of the encoder costs.

    Attributes:
        name: Its path.
        kernels: How many kernels it runs.
        moved: Bytes of activations that they read and write.
    """

    name: str
    kernels: int
    moved: int


@dataclass(frozen=True)
class EngineTable:
    """A compiled file, operation by operation.

    Attributes:
        build: The compiled file.
        rows: Its operations.
        layers: The layers of the encoder; the first holds what comes before, the last what comes after.
        half: The same model in fp16 without quantizers; None if that could not be compiled.
    """

    build: Build
    rows: tuple[Row, ...]
    layers: tuple[Layer, ...]
    half: Build | None

    @property
    def fused_attentions(self) -> int:
        """How many attentions are one kernel each."""
        return sum(bool(row.fused) for row in self.rows if row.operation == "query x key")

    @property
    def summary(self) -> str:
        """One line: kernels and bytes, and those in fp16."""
        kernels = counted(len(self.build.kernels), "kernel")
        line = f"{kernels}, {self.build.moved / 2**20:.0f} MiB read and written"
        if self.half is None:
            return f"{line}; the same model in fp16 does not compile."
        ratio = self.build.moved / self.half.moved
        return (
            f"{line}; in fp16 without quantizers {counted(len(self.half.kernels), 'kernel')}, "
            f"{self.half.moved / 2**20:.0f} MiB: {ratio:.2f} times that."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        half = self.half
        return {
            "capability": self.build.capability,
            "version": self.build.version,
            "shape": [self.build.shape.batch, self.build.shape.length],
            "kernels": len(self.build.kernels),
            "bytes_moved": self.build.moved,
            "fused_attentions": self.fused_attentions,
            "fp16": None if half is None else {"kernels": len(half.kernels), "bytes_moved": half.moved},
            "operations": [vars(row) for row in self.rows],
            "layers": [vars(layer) for layer in self.layers],
        }


def read_tables(
    file: Path,
    builds: Sequence[Build],
    operations: Sequence[Operation],
    say: Callable[[str], None] = lambda _: None,
) -> list[EngineTable]:
    """Say what became of a file's operations, beside the same model in fp16, which is compiled for it.

    Args:
        file: The ONNX file.
        builds: It, compiled by `build` or `build_all`.
        operations: Those of `qdqpatch.lint.graph.read_sites`.
        say: Called with what begins.
    """
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        baseline = _in_half(file, Path(folder))
        for built in builds:
            say(f"Compiling the model in fp16 for {built.capability}")
            tables.append(read_table(built, operations, _half_of(baseline, built.capability, built.shape)))
    return tables


def read_table(built: Build, operations: Sequence[Operation], half: Build | None) -> EngineTable:
    """Relate an engine's kernels to the operations of the graph."""
    by_node: dict[str, list[Kernel]] = {}
    for kernel in built.kernels:
        for node in kernel.nodes:
            by_node.setdefault(node, []).append(kernel)
    partners = {(at.path, at.operation): at.node for at in operations}
    rows = [
        _row(operation, by_node, partners.get((operation.path, _PARTNER.get(operation.operation, "")), ""))
        for operation in operations
    ]
    return EngineTable(built, tuple(rows), _layers(built, operations, by_node), half)


def _row(operation: Operation, by_node: dict[str, list[Kernel]], partner: str) -> Row:
    """Describe one operation; `partner` is the node of the other matmul of an attention."""
    kernels = by_node.get(operation.node, [])
    if not kernels:
        return Row(operation.path, operation.operation, "", "", (), ())
    kernel = next((kernel for kernel in kernels if kernel.kind in _LIBRARY), kernels[0])
    fused: bool | None = None
    if operation.operation in _PARTNER:
        fused = partner in kernel.nodes
    elif operation.operation == "residual add":
        kernel = kernels[-1]
        fused = operation.norm in kernel.nodes
    reads = tuple(dict.fromkeys(tensor.dtype for tensor in kernel.inputs))
    writes = tuple(dict.fromkeys(tensor.dtype for tensor in kernel.outputs))
    return Row(operation.path, operation.operation, kernel.name, kernel.kind, reads, writes, fused)


def _layers(
    built: Build, operations: Sequence[Operation], by_node: dict[str, list[Kernel]]
) -> tuple[Layer, ...]:
    """Count kernels and bytes by the layer of the first operation in each kernel, or of the kernel before."""
    owner: dict[Kernel, str] = {}
    for operation in operations:
        match = _LAYER.match(operation.path)
        for kernel in by_node.get(operation.node, []):
            owner.setdefault(kernel, match[0] if match else "elsewhere")
    counted: dict[str, list[int]] = {}
    name = "before the layers"
    for kernel in built.kernels:
        name = owner.get(kernel, name)
        counted.setdefault(name, []).append(kernel.moved)
    return tuple(Layer(name, len(moved), sum(moved)) for name, moved in counted.items())


def _in_half(file: Path, folder: Path) -> Path | None:
    """Write the model without quantizers and in fp16; None if that cannot be, as with foreign operators."""
    import onnx_ir as ir

    from qdqpatch.engines.tensorrt.half import cast_floats, remove_quantizers

    try:
        model = ir.load(file)
        remove_quantizers(model)
        cast_floats(model, ir.DataType.FLOAT16)
        ir.save(model, folder / "half.onnx", external_data="half.onnx.data")
    except Exception:  # a graph that the compiler refuses may be one that cannot be rewritten either
        return None
    return folder / "half.onnx"


def _half_of(file: Path | None, capability: str, shape: Shape) -> Build | None:
    try:
        return None if file is None else build(file, capability, shape)
    except EngineError:
        return None
