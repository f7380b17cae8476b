"""Where the time of an exported model goes, per operator, as the engines' own profilers tell it."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

RUNS = 8
WARM = 3
"""Runs that do not count."""

Profile = dict[str, float]
"""Milliseconds of a run by operator, the slowest first."""


def onnxruntime(path: Path, feed: dict[str, Any], threads: int) -> Profile:
    """Run a file in ONNX Runtime with its profiler on."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    counted = kernels[len(kernels) // RUNS * WARM :]
    times: Counter[str] = Counter()
    for event in counted:
        times[event["args"]["op_name"]] += event["dur"] / 1e3 / (RUNS - WARM)
    return dict(times.most_common())


def openvino(path: Path, shape: tuple[int, int], feed: dict[str, Any], settings: dict[str, Any]) -> Profile:
    """Run a file in OpenVINO with its counters on."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(path)
    model.reshape({port.get_any_name(): list(shape) for port in model.inputs})
    request = core.compile_model(model, "CPU", settings | {"PERF_COUNT": "YES"}).create_infer_request()
    times: Counter[str] = Counter()
    for run in range(RUNS):
        request.infer(feed)
        for entry in request.get_profiling_info() if run >= WARM else ():
            kind = f"{entry.node_type} {entry.exec_type.rpartition('_')[2]}"
            times[kind] += entry.real_time.total_seconds() * 1e3 / (RUNS - WARM)
    return {kind: time for kind, time in times.most_common() if time}
