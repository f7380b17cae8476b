"""A model in the target's engine: exported to a temporary folder, run, judged and timed there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedModel

from qdqpatch.bench.inputs import make_inputs
from qdqpatch.bench.measure import interleave
from qdqpatch.choices import WeightMethod
from qdqpatch.data.arrays import Arrays
from qdqpatch.data.lengths import config_limit
from qdqpatch.engines.models import facts_of
from qdqpatch.engines.sessions import ENGINES, ONNX_RUNTIME, Engine, Session
from qdqpatch.engines.shapes import Shape, cut
from qdqpatch.errors import EngineError
from qdqpatch.evaluation.predicting import engine_run, predict
from qdqpatch.exporter.asked import are_exact, weight_method_for
from qdqpatch.exporter.export import prepare_export, require_packages
from qdqpatch.exporter.options import ExportOptions
from qdqpatch.packages import require
from qdqpatch.tasks.base import Feature, Task

if TYPE_CHECKING:  # this needs packages that are not always installed
    from qdqpatch.exporter.tracing import Traces

SHAPE = Shape(1, 128)
"""What is timed unless told otherwise."""

ROUNDS = 8


@dataclass(frozen=True)
class Place:
    """Where a model is judged.

    Attributes:
        target: What files are for.
        engine: What runs them: the target's own, or ONNX Runtime for TensorRT.
        threads: That a run may use; None for the engine's own choice.
        options: Further arguments of `export`.
        traces: Of the models so far, most of which differ in ranges alone.
    """

    target: str
    engine: Engine
    threads: int | None
    options: dict[str, Any]
    traces: Traces

    @classmethod
    def of(cls, target: str, threads: int | None = None, **options: Any) -> Place:
        """Settle the engine.

        Raises:
            ExportError: If what writes the files is not installed, or `cpu` is not for the target.
            EngineError: If the engine is not.
        """
        engine = ENGINES.get(target, ONNX_RUNTIME)
        require_packages(target, check=False)
        are_exact(target, options.get("cpu"), None)
        require(f"Judging models for {target}", engine.package, error=EngineError)
        from qdqpatch.exporter.tracing import Traces

        return cls(target, engine, threads, options, Traces())

    @property
    def is_timed(self) -> bool:
        """Whether the engine's speed is that of the target."""
        return self.target == self.engine.name

    @property
    def weight_method(self) -> WeightMethod:
        """How the ranges of weights are chosen for what will run the files."""
        return weight_method_for(self.target, self.options.get("cpu"))

    def write(self, model: PreTrainedModel, folder: Path, as_float: bool = False) -> Session:
        """Export a model without comparing it, and load the file."""
        given = {name: value for name, value in self.options.items() if not as_float or name == "cpu"}
        if self.target == "tensorrt":  # of which ONNX Runtime computes the numbers, in fp32
            given["dtype"] = "float32"
        options = ExportOptions(as_float=as_float, check=False, **given)
        write = prepare_export(model, self.target, options, self.traces)
        return self.engine.load(write(folder, folder).file, self.threads, exact=not self.is_timed)


def outputs_in(
    session: Session, task: Task[Any], features: Sequence[Feature], batch_size: int
) -> list[Arrays]:
    """Return what a file gives for features, as the task keeps it."""
    return predict(engine_run(session), task, features, batch_size)


def latencies(sessions: Sequence[Session], model: PreTrainedModel, shape: Shape) -> list[float]:
    """Time sessions in turns; return the median of each in seconds.

    Args:
        sessions: What to time.
        model: Says how long sequences can be, and which tokens there are.
        shape: Of the inputs; cut to what the model takes.
    """
    (fitting,) = cut([shape], config_limit(model.config))
    facts = facts_of(model.config.to_dict())
    runs = {}
    for number, session in enumerate(sessions):
        inputs = make_inputs(session.inputs, fitting, facts)
        runs[number] = lambda session=session, inputs=inputs: session.run(inputs)
    return [float(np.median(seconds)) for seconds in interleave(runs, ROUNDS).values()]
