"""Compile an ONNX file with TensorRT for RTX, for any compute capability, on a machine without a GPU."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdqpatch import packages
from qdqpatch.choices import CAPABILITIES, DEFAULT_CAPABILITIES, FLOAT8_CAPABILITIES
from qdqpatch.engines.shapes import Shape
from qdqpatch.engines.tensorrt.layers import Kernel, read_kernels
from qdqpatch.errors import ConfigError, EngineError

PACKAGE = "tensorrt_rtx_bindings"
SHAPE = Shape(32, 128)
"""What a file with dynamic axes is compiled for, unless another shape is named."""

MINUTES = 30


@dataclass(frozen=True)
class Build:
    """A compiled file.

    Attributes:
        capability: What it was compiled for.
        version: Of TensorRT for RTX.
        shape: Batch and length, where the file leaves them open.
        kernels: What the engine runs, in order.
        size: Bytes of the engine.
    """

    capability: str
    version: str
    shape: Shape
    kernels: tuple[Kernel, ...]
    size: int

    @property
    def moved(self) -> int:
        """The bytes of activations that all kernels read and write."""
        return sum(kernel.moved for kernel in self.kernels)


def require(capabilities: Sequence[str] = DEFAULT_CAPABILITIES, float8: bool = False) -> None:
    """Find out before the work whether files can be compiled here, for these capabilities.

    Args:
        capabilities: Those.
        float8: Whether the files have FP8.

    Raises:
        ConfigError: If a capability does not exist, or has no FP8 where that is needed.
        EngineError: If TensorRT for RTX is not installed.
    """
    for capability in capabilities:
        if capability not in CAPABILITIES:
            known = ", ".join(CAPABILITIES)
            raise ConfigError(f"There is no compute capability {capability!r}; TensorRT for RTX has {known}.")
        if float8 and capability not in FLOAT8_CAPABILITIES:
            raise ConfigError(
                f"{capability} has no FP8, which came with SM89 (Ada): leave it out, or quantize to int8."
            )
    packages.require("Compiling", PACKAGE, error=EngineError)


def build(file: Path, capability: str, shape: Shape = SHAPE) -> Build:
    """Compile a file.

    Args:
        file: The ONNX file.
        capability: One of `CAPABILITIES`.
        shape: Batch and length for dynamic axes; nothing where the file fixes them.

    Raises:
        ConfigError: If there is no such capability.
        EngineError: If TensorRT for RTX is not installed, refuses a node, which is then named, or cannot
            compile the file for this capability.
    """
    require([capability])
    arguments = [str(file), capability, str(shape.batch), str(shape.length)]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "qdqpatch.engines.tensorrt.compiler", *arguments],
            capture_output=True,
            text=True,
            timeout=60 * MINUTES,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"TensorRT did not compile {file} for {capability} in {MINUTES} minutes."
        ) from error
    try:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise EngineError(f"TensorRT's compiler crashed on {file} for {capability}: {last}") from error
    if "layers" not in result:
        raise EngineError(_refusal(file, capability, result["errors"]))
    kernels = read_kernels(result["layers"])
    return Build(capability, result["version"], shape, kernels, result["bytes"])


def build_all(
    file: Path,
    capabilities: Sequence[str] = DEFAULT_CAPABILITIES,
    shape: Shape = SHAPE,
    say: Callable[[str], None] = lambda _: None,
) -> list[Build]:
    """Compile a file for several capabilities; `say` is called with what begins."""
    require(capabilities)
    builds = []
    for capability in capabilities:
        say(f"Compiling for {capability}")
        builds.append(build(file, capability, shape))
    return builds


def _refusal(file: Path, capability: str, errors: list[dict[str, str]]) -> str:
    """Say what was refused: the node, if it was one, and the reason without places in TensorRT's source."""
    error = next((error for error in errors if error["operator"]), errors[0] if errors else None)
    if error is None:
        return f"TensorRT cannot compile {file} for {capability}, and does not say why."
    lines = [line for line in error["message"].splitlines() if line.strip() and _NO_DRIVER not in line]
    reason = _SOURCE.sub("", " ".join(lines)).strip().rstrip(".")
    if "Plugin not found" in reason:
        reason = "it has no such operator"
    if "fp8_e4m3" in reason and capability not in FLOAT8_CAPABILITIES:
        reason = "FP8 came with SM89 (Ada)"
    if error["operator"]:
        return f"TensorRT refuses {file}: node {error['node']!r} ({error['operator']}): {reason}."
    return f"TensorRT cannot compile {file} for {capability}: {reason}."


_NO_DRIVER = "CUDA driver version is insufficient"
"""What the compiler adds to its reasons where there is no GPU, which it does not need."""

_SOURCE = re.compile(
    r"IBuilder::\w+: Error Code \d+: |In function \w+:|In \w+ at \S+|\[\w+\.\w+:\d+: \w+\] ?|\[\d+\] "
)
