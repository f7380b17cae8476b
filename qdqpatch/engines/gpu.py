"""Engines on an NVIDIA GPU, which `bench` runs files in: ONNX Runtime's, TensorRT and TensorRT for RTX."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from qdqpatch.data.arrays import Array, Arrays
from qdqpatch.engines.homes import longest_of
from qdqpatch.engines.profiles import Profile, profile_of, profiles_for
from qdqpatch.engines.sessions import Engine, Input, Session
from qdqpatch.engines.shapes import Shape
from qdqpatch.errors import EngineError
from qdqpatch.packages import lacking

ON_GPU = "onnxruntime-gpu"
"""The package of the ONNX Runtime that has providers for a GPU."""


@dataclass(frozen=True)
class GpuEngine(Engine):
    """An engine that needs a GPU.

    Attributes:
        provider: Of ONNX Runtime; None for an engine of its own.
    """

    provider: str | None = None

    @property
    def version(self) -> str | None:
        """The installed version; None where it is not installed."""
        if importlib.util.find_spec(self.package) is None:
            return None
        return str(importlib.import_module(self.package).__version__)

    def lacking(self) -> str | None:
        """Say in one line why it cannot run here; None if it can."""
        if not has_gpu():
            return f"{self.name} needs an NVIDIA GPU with its driver, and this machine has none."
        install = None if self.provider is None else ON_GPU
        if reason := lacking(f"Running models in {self.name}", self.package, install=install):
            return reason
        if self.provider is None:
            import torch

            return (
                None if torch.cuda.is_available() else f"{self.name} needs a torch with CUDA for its memory."
            )
        if self.provider not in importlib.import_module(self.package).get_available_providers():
            return f"This ONNX Runtime has no {self.provider}: pip install {ON_GPU}"
        return None


@cache
def has_gpu() -> bool:
    """Return whether there is an NVIDIA GPU and its driver."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return bool(library.cuInit(0) == 0)


def _open_provider(provider: str) -> Callable[[Any, Path, int | None, bool], Session]:
    def open_file(ort: Any, path: Path, threads: int | None, exact: bool) -> Session:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        settings = {"trt_fp16_enable": True, "trt_int8_enable": True} if "Tensorrt" in provider else {}
        session = ort.InferenceSession(
            str(path), options, providers=[(provider, settings), "CUDAExecutionProvider"]
        )
        outputs = [output.name for output in session.get_outputs()]
        inputs = tuple(
            Input(
                value.name,
                tuple(size if isinstance(size, int) else None for size in value.shape),
                value.type.removeprefix("tensor(").removesuffix(")"),
            )
            for value in session.get_inputs()
        )
        return Session(inputs, lambda feed: dict(zip(outputs, session.run(outputs, dict(feed)), strict=True)))

    return open_file


def _open_tensorrt(trt: Any, path: Path, threads: int | None, exact: bool) -> Session:
    """Compile a file for the GPU that is there, and run it with torch's memory."""
    import torch  # other engines run without it

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise EngineError(parser.get_error(0).desc())
    config = builder.create_builder_config()
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    is_dynamic = any(-1 in tuple(tensor.shape) for tensor in inputs)
    profiles = profiles_for(longest_of(path)) if is_dynamic else ()
    for profile in profiles:
        add_profile(config, builder.create_optimization_profile(), inputs, profile)
    plan = builder.build_serialized_network(network, config)
    engine = None if plan is None else trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError("TensorRT could not compile it for this GPU")
    context, stream = engine.create_execution_context(), torch.cuda.Stream()
    outputs = [network.get_output(index).name for index in range(network.num_outputs)]

    def run(feed: Arrays) -> dict[str, Array]:
        with torch.cuda.stream(stream):
            if profiles:
                number = profile_of(profiles, shape_of(inputs, feed))
                if number != context.active_optimization_profile:
                    context.set_optimization_profile_async(number, stream.cuda_stream)
            tensors = {name: torch.from_numpy(array).cuda() for name, array in feed.items()}
            for name, tensor in tensors.items():
                context.set_input_shape(name, tuple(tensor.shape))
                context.set_tensor_address(name, tensor.data_ptr())
            for name in outputs:
                dtype = getattr(torch, _TORCH[engine.get_tensor_dtype(name).name])
                tensors[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=dtype, device="cuda")
                context.set_tensor_address(name, tensors[name].data_ptr())
            if not context.execute_async_v3(stream.cuda_stream):
                raise EngineError("TensorRT failed to run it")
            found = {name: tensors[name].cpu() for name in outputs}
        stream.synchronize()
        return {name: tensor.float().numpy() for name, tensor in found.items()}

    sizes = [
        Input(
            tensor.name,
            tuple(None if size == -1 else size for size in tensor.shape),
            "int32" if tensor.dtype.name == "INT32" else "int64",
        )
        for tensor in inputs
    ]
    return Session(tuple(sizes), run)


def add_profile(config: Any, profile: Any, inputs: Iterable[Any], shapes: Profile) -> None:
    """Let a file be compiled for a range of shapes: of what is dynamic, axis 0 is the batch.

    Args:
        config: TensorRT's `IBuilderConfig`.
        profile: Its `IOptimizationProfile`, which is filled.
        inputs: What the network takes.
        shapes: The range.
    """
    for tensor in inputs:
        if -1 in tuple(tensor.shape):
            profile.set_shape(
                tensor.name,
                *(
                    tuple(
                        size if size != -1 else shape.batch if axis == 0 else shape.length
                        for axis, size in enumerate(tensor.shape)
                    )
                    for shape in (shapes.smallest, shapes.usual, shapes.largest)
                ),
            )
    config.add_optimization_profile(profile)


def shape_of(inputs: Sequence[Any], feed: Arrays) -> Shape:
    """Return the batch and the length that are given where the network leaves them open, else 1."""
    found = Shape(1, 1)
    for tensor in inputs:
        for axis, size in enumerate(tensor.shape):
            if size == -1:
                given = int(feed[tensor.name].shape[axis])
                found = Shape(given, found.length) if axis == 0 else Shape(found.batch, given)
    return found


_TORCH = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


GPU_ENGINES: dict[str, GpuEngine] = {
    engine.name: engine
    for engine in (
        *(
            GpuEngine(name, "onnxruntime", (".onnx",), _open_provider(provider), provider)
            for name, provider in (
                ("onnxruntime-cuda", "CUDAExecutionProvider"),
                ("onnxruntime-tensorrt", "TensorrtExecutionProvider"),
            )
        ),
        GpuEngine("tensorrt", "tensorrt", (".onnx",), _open_tensorrt),
        GpuEngine("tensorrt-rtx", "tensorrt_rtx_bindings", (".onnx",), _open_tensorrt),
    )
}
"""Every one of them, by its name."""
