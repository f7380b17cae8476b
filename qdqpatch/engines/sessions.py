"""The runtimes that exported models are checked and measured in: load a file, run it on the CPU."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdqpatch.data.arrays import Array, Arrays
from qdqpatch.engines.saturation import may_saturate, may_saturate_in_openvino
from qdqpatch.engines.telemetry import no_telemetry
from qdqpatch.engines.vnni import saturates
from qdqpatch.errors import EngineError, one_line
from qdqpatch.packages import missing, require

if TYPE_CHECKING:  # files run without it
    from torch import Tensor

REDUCED = "computes in bfloat16, which this processor has, what the model leaves in float"
SATURATED = "loses accuracy here: this processor has no VNNI, and sums of products of integers saturate"


@dataclass(frozen=True)
class Input:
    """A tensor that a model takes.

    Attributes:
        name: Its name.
        shape: Its dimensions, None for one that is free; empty if the file does not say.
        dtype: Its type, by NumPy's name.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids", "input_mask", "segment_ids")
"""Inputs with an entry for each token: batch first, tokens last."""


def fixed_sizes(inputs: Sequence[Input]) -> tuple[int | None, int | None]:
    """Return the batch and the length that a graph is made for; None for what is free."""
    shapes = [value.shape for value in inputs if value.shape and value.name in OF_TOKENS]
    batch, length = ([shape[axis] for shape in shapes if shape[axis] is not None] for axis in (0, -1))
    return next(iter(batch), None), next(iter(length), None)


@dataclass(frozen=True)
class Session:
    """A model that is loaded and ready to run.

    Attributes:
        inputs: What it takes.
        precision: What the engine computes in where the model says fp32: `float32` or `bfloat16`.
        float_matmuls: Whether it multiplies the levels in fp32, because the engine's integer kernels saturate
            on this processor.
    """

    inputs: tuple[Input, ...]
    _run: Callable[[Arrays], dict[str, Array]]
    precision: str = "float32"
    float_matmuls: bool = False
    _saturated: Callable[[], bool] = lambda: False

    @functools.cached_property
    def saturated(self) -> bool:
        """Whether it uses kernels that saturate here, and so computes something else than the model says."""
        return self._saturated()

    @property
    def note(self) -> str | None:
        """What a reader of its figures has to know; None for nothing."""
        notes = [REDUCED] * (self.precision == "bfloat16") + [SATURATED] * self.saturated
        return "; ".join(notes) or None

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of what it takes."""
        return tuple(value.name for value in self.inputs)

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Return the outputs by name; tensors that the model does not take are left out.

        Raises:
            EngineError: If a tensor that it takes is missing, or the engine fails.
        """
        missing = [name for name in self.input_names if name not in inputs]
        if missing:
            raise EngineError(f"The model needs the inputs {', '.join(missing)}, which were not given.")
        try:
            return self._run({name: inputs[name] for name in self.input_names})
        except Exception as error:  # engines raise types of their own
            raise EngineError(f"The engine failed to run the model: {one_line(error)}") from error

    def run_tensors(self, inputs: Mapping[str, Tensor]) -> dict[str, Array]:
        """Return the outputs for torch's tensors, on the CPU."""
        return self.run({name: tensor.numpy() for name, tensor in inputs.items()})


@dataclass(frozen=True)
class Engine:
    """A runtime, imported only when it is used.

    Attributes:
        name: As commands and tables call it.
        package: The module to import, and the distribution to install.
        suffixes: The files that it loads.
    """

    name: str
    package: str
    suffixes: tuple[str, ...]
    _open: Callable[[Any, Path, int | None, bool], Session]

    @property
    def version(self) -> str | None:
        """The installed version; None where it is not installed."""
        if not self.is_installed:
            return None
        try:
            return version(self.package)
        except PackageNotFoundError:  # another distribution brought the module, such as onnxruntime-gpu
            return str(importlib.import_module(self.package).__version__)

    @property
    def is_installed(self) -> bool:
        """Whether it is."""
        return not missing(self.package)

    def require(self) -> None:
        """Raise an `EngineError` if it is not installed."""
        require(f"Running models in {self.name}", self.package, error=EngineError)

    def load(self, path: Path, threads: int | None = None, exact: bool = False) -> Session:
        """Load a model from a file.

        Args:
            path: The file.
            threads: How many threads one run may use; None for the engine's own choice.
            exact: Whether the file's own numbers are wanted, at whatever speed. OpenVINO takes bf16 for fp32
                where the CPU has it; and where its products of uint8 and int8 saturate (`saturates`), ONNX
                Runtime takes constants of int8 as uint8, and OpenVINO multiplies in fp32.

        Raises:
            EngineError: If the engine is not installed, or refuses the file.
        """
        self.require()
        try:
            with no_telemetry():
                module = importlib.import_module(self.package)
        except ImportError as error:
            raise EngineError(f"{self.name} cannot be imported: {one_line(error)}") from error
        try:
            return self._open(module, path, threads, exact)
        except Exception as error:  # engines raise types of their own
            raise EngineError(f"{self.name} cannot load {path}: {one_line(error)}") from error


def _open_onnxruntime(ort: Any, path: Path, threads: int | None, exact: bool) -> Session:
    options = ort.SessionOptions()
    options.log_severity_level = 4 if exact else 3  # what is mended below is no error
    if threads is not None:
        options.intra_op_num_threads = threads
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")  # nothing where there is VNNI
    # Threads that wait for the next run by spinning would take the time of whatever runs meanwhile.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception:  # the engine's own type
        if not exact:
            raise
        # It fails to take a constant as uint8 that several nodes read, as of ALBERT's layer, which runs many
        # times. A graph that is left as it stands is exact too.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    return Session(
        tuple(
            Input(
                value.name,
                tuple(size if isinstance(size, int) else None for size in value.shape),
                _dtype(value.type.removeprefix("tensor(").removesuffix(")")),
            )
            for value in session.get_inputs()
        ),
        lambda inputs: dict(zip(outputs, session.run(outputs, dict(inputs)), strict=True)),
        _saturated=lambda: not exact and saturates() and may_saturate(path),
    )


def _open_openvino(openvino: Any, path: Path, threads: int | None, exact: bool) -> Session:
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    float_matmuls = exact and saturates() and may_saturate_in_openvino(path)
    if exact:
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    if float_matmuls:
        settings["LP_TRANSFORMS_MODE"] = False  # leaves FakeQuantize and MatMul as they stand in the file
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    request = compiled.create_infer_request()

    def run(inputs: Arrays) -> dict[str, Array]:
        found = request.infer(dict(inputs))
        return {port.get_any_name(): found[port] for port in compiled.outputs}  # copies of the engine's own

    return Session(
        tuple(
            Input(
                port.get_any_name(),
                _sizes(port.get_partial_shape()),
                _dtype(port.get_element_type().get_type_name()),
            )
            for port in compiled.inputs
        ),
        run,
        _dtype(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()),
        float_matmuls,
        lambda: not float_matmuls and saturates() and may_saturate_in_openvino(path),
    )


def _sizes(shape: Any) -> tuple[int | None, ...]:
    """Return OpenVINO's partial shape as sizes; none if even their number is free."""
    if shape.rank.is_dynamic:
        return ()
    return tuple(size.get_length() if size.is_static else None for size in shape)


def _dtype(name: str) -> str:
    """Return NumPy's name of a type for ONNX Runtime's or OpenVINO's."""
    return _DTYPES.get(name, name)


_DTYPES = {
    "float": "float32",
    "double": "float64",
    "boolean": "bool",
    "i64": "int64",
    "i32": "int32",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
}


ONNX_RUNTIME = Engine("onnxruntime", "onnxruntime", (".onnx",), _open_onnxruntime)
OPENVINO = Engine("openvino", "openvino", (".xml", ".onnx"), _open_openvino)

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (ONNX_RUNTIME, OPENVINO)}
"""Every runtime, by its name."""
