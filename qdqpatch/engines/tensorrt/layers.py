"""Read the layers of an engine from the compiler's log: their tensors, and the nodes that they came from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

BITS = {
    "Double": 64,
    "Float": 32,
    "Half": 16,
    "BFloat16": 16,
    "FP8": 8,
    "FP4": 4,
    "Int64": 64,
    "Int32": 32,
    "Int8": 8,
    "UInt8": 8,
    "Int4": 4,
    "Bool": 8,
}
"""The types of the log, and their size; one that is not known counts as 32 bits."""

NAMES = {
    "Float": "fp32",
    "Half": "fp16",
    "BFloat16": "bf16",
}
"""What they are called in tables, if not by their own name in small letters."""

_HEAD = re.compile(
    r"^Name: (.*?), LayerType: (\w+), Inputs: \[(.*?)\], Constants: \[(.*?)\], Outputs: \[(.*?)\],"
    r" TacticName: "
)
_TENSOR = re.compile(r"\{ Name: (.*?), Dimensions: \[([\d,]*)\],.*?Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\x1f]*)\]")
_SYNCHRONIZING = ("signal", "wait")


@dataclass(frozen=True)
class Tensor:
    """What a kernel reads or writes.

    Attributes:
        name: The compiler's name.
        shape: Its dimensions, as the kernel sees them.
        dtype: The type, such as `int8`, `fp8`, `fp16` and `fp32`.
        size: In bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int


@dataclass(frozen=True)
class Kernel:
    """A layer of the engine that computes.

    Attributes:
        name: The compiler's name.
        kind: What it calls it: `gemm` from its library, `kgen` generated, `runtime_fusion`, ...
        inputs: The activations that it reads.
        constants: Weights and other constants.
        outputs: What it writes.
        nodes: The nodes of the ONNX graph that it computes, or parts of.
    """

    name: str
    kind: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: frozenset[str]

    @property
    def moved(self) -> int:
        """The bytes of activations that it reads and writes."""
        return sum(tensor.size for tensor in (*self.inputs, *self.outputs))


def read_kernels(lines: Iterable[str]) -> tuple[Kernel, ...]:
    """Return the kernels in lines of the log, in their order, without layers that only wait for others."""
    kernels = []
    for line in lines:
        match = _HEAD.match(line)
        if match is None or match[2] in _SYNCHRONIZING:
            continue
        inputs, constants, outputs = (tuple(map(_tensor, _TENSOR.findall(match[part]))) for part in (3, 4, 5))
        nodes = frozenset(_NODE.findall(line.rpartition("Metadata: ")[2]))
        kernels.append(Kernel(match[1], match[2], inputs, constants, outputs, nodes))
    return tuple(kernels)


def _tensor(found: tuple[str, str, str]) -> Tensor:
    name, dimensions, dtype = found
    shape = tuple(int(size) for size in dimensions.split(",") if size)
    size = math.prod(shape) * BITS.get(dtype, 32) // 8
    return Tensor(name, shape, NAMES.get(dtype, dtype.lower()), size)
