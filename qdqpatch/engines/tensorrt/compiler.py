"""Compiles one file, in a process of its own: what crashes in the compiler is an error there, not here.

`python -m qdqpatch.engines.tensorrt.compiler FILE CAPABILITY BATCH LENGTH` prints one line of JSON: the
version, the engine's layers as the compiler's log has them, or the errors.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from typing import Any

CHOICES = 2
"""Of a dynamic axis that is neither the first nor the last: the choices of a multiple-choice head."""

_PLACE = re.compile(r'While parsing node number \d+ \[\w+ -> "(.*?)"\]')
"""Where the parser tells the first output of a node, which need not have a name."""


def compile_file(file: str, capability: str, batch: int, length: int) -> dict[str, Any]:
    """Parse and compile a file for a compute capability.

    Returns:
        `version`; `layers`, lines of the log, if it was compiled; else `errors`, what the parser or the
        compiler said.
    """
    trt = importlib.import_module("tensorrt_rtx_bindings")
    lines: list[tuple[str, str]] = []

    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]  # a class of a module that may be absent
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            lines.append((severity.name, message))

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    result: dict[str, Any] = {"version": trt.__version__}
    if not parser.parse_from_file(file):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        places = [match[1] for _, text in lines if (match := _PLACE.search(text))]
        outputs = [*places, *[""] * len(errors)]
        result["errors"] = [
            {"node": error.node_name() or output, "operator": error.node_operator(), "message": error.desc()}
            for error, output in zip(errors, outputs, strict=False)
        ]
        return result
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    profile = builder.create_optimization_profile()
    dynamic = False
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        shape = tuple(tensor.shape)
        if -1 in shape:
            dynamic = True
            chosen = tuple(
                size if size != -1 else batch if axis == 0 else length if axis == len(shape) - 1 else CHOICES
                for axis, size in enumerate(shape)
            )
            profile.set_shape(tensor.name, chosen, chosen, chosen)
    if dynamic:
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        messages = [message for severity, message in lines if severity == "ERROR"]
        result["errors"] = [{"node": "", "operator": "", "message": message} for message in messages]
        return result
    layers = next((text for _, text in reversed(lines) if text.startswith("Layers:")), "")
    result["layers"] = [line for line in layers.split("\n") if line.startswith("Name: ")]
    result["bytes"] = plan.nbytes
    return result


if __name__ == "__main__":
    name, capability, batch, length = sys.argv[1:]
    print(json.dumps(compile_file(name, capability, int(batch), int(length))))
