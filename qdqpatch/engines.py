"""The runtimes that exported models are checked and measured in: loading a file, and running it on the CPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qdqpatch.errors import EngineError

Array = npt.NDArray[np.generic]
Arrays = Mapping[str, Array]
"""Tensors by name: ids and masks as int64, the rest as fp32."""


@dataclass(frozen=True)
class Session:
    """A model that is loaded and ready to run.

    Attributes:
        input_names: What it takes.
    """

    input_names: tuple[str, ...]
    _run: Callable[[Arrays], dict[str, Array]]

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Return the outputs by name; tensors that the model does not take are left out.

        Raises:
            EngineError: If a tensor that it takes is missing, or the engine fails.
        """
        missing = [name for name in self.input_names if name not in inputs]
        if missing:
            raise EngineError(f"The model takes {', '.join(missing)}, which the inputs have not.")
        try:
            return self._run({name: inputs[name] for name in self.input_names})
        except Exception as error:  # engines raise types of their own
            raise EngineError(f"The engine failed to run the model: {error}") from error


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
    _open: Callable[[Any, Path, int | None], Session]

    @property
    def version(self) -> str | None:
        """The installed version; None where it is not installed."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None

    def load(self, path: Path, threads: int | None = None) -> Session:
        """Load a model from a file.

        Args:
            path: The file.
            threads: How many threads one run may use; None for the engine's own choice.

        Raises:
            EngineError: If the engine is not installed, or refuses the file.
        """
        try:
            module = importlib.import_module(self.package)
        except ImportError as error:
            raise EngineError(f"{self.name} is not installed: pip install {self.package}") from error
        try:
            return self._open(module, path, threads)
        except Exception as error:  # engines raise types of their own
            raise EngineError(f"{self.name} cannot load {path}: {error}") from error


def _open_onnxruntime(ort: Any, path: Path, threads: int | None) -> Session:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    # Threads that wait for the next run by spinning would take the time of whatever runs meanwhile.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = [each.name for each in session.get_outputs()]
    return Session(
        tuple(each.name for each in session.get_inputs()),
        lambda inputs: dict(zip(outputs, session.run(outputs, dict(inputs)), strict=True)),
    )


def _open_openvino(openvino: Any, path: Path, threads: int | None) -> Session:
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    request = compiled.create_infer_request()

    def run(inputs: Arrays) -> dict[str, Array]:
        found = request.infer(dict(inputs))
        return {port.get_any_name(): np.array(found[port]) for port in compiled.outputs}

    return Session(tuple(port.get_any_name() for port in compiled.inputs), run)


ONNX_RUNTIME = Engine("onnxruntime", "onnxruntime", (".onnx",), _open_onnxruntime)
OPENVINO = Engine("openvino", "openvino", (".xml", ".onnx"), _open_openvino)

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (ONNX_RUNTIME, OPENVINO)}
"""Every runtime, by its name."""
