"""An export, step by step: trace, rewrite for the target, write, run in the engine, compare, count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor
from transformers import PreTrainedModel

from qdqpatch.checkpoint.companions import Companions
from qdqpatch.engines.sessions import ONNX_RUNTIME, Engine
from qdqpatch.engines.shapes import cut
from qdqpatch.engines.tensorrt.build import SHAPE, Build, build_all
from qdqpatch.errors import EngineError, ExportError
from qdqpatch.exporter.check import OutputComparison, compare, own_noise, require_equal
from qdqpatch.exporter.graph import Rewriter
from qdqpatch.exporter.grids import check_grids
from qdqpatch.exporter.inputs import Inputs
from qdqpatch.exporter.kernels import match, matmuls, name_after_modules
from qdqpatch.exporter.layout import link_quantized, size_of, write_beside, write_export_json
from qdqpatch.exporter.result import Export
from qdqpatch.exporter.rules.base import apply
from qdqpatch.exporter.symbolic_operators import DOMAIN
from qdqpatch.exporter.targets.base import Target
from qdqpatch.exporter.tracing import outputs_of, trace
from qdqpatch.nn.pooling import SentenceHead
from qdqpatch.tasks.head import classifier_of


@dataclass(frozen=True)
class Pipeline:
    """What the steps need.

    Attributes:
        model: As `preparing.prepared` gives it.
        target: What to export for.
        inputs: Makes batches for the model.
        say: Called with what begins.
        companions: What goes along with the file; None for nothing.
        head: What makes a text's embedding; None for a model that has none.
    """

    model: PreTrainedModel
    target: Target
    inputs: Inputs
    say: Callable[[str], None]
    companions: Companions | None = None
    head: SentenceHead | None = None

    @property
    def engine(self) -> Engine:
        """Where the file is run: the target's own engine, or ONNX Runtime."""
        return self.target.engine or ONNX_RUNTIME

    def run(
        self,
        folder: Path,
        out: Path,
        opset: int | None,
        tokenizer: Any,
        check: bool,
        batches: Iterable[dict[str, Tensor]] | None,
        build: Sequence[str] = (),
    ) -> Export:
        """Export to a folder that becomes `out` in the end; the other arguments are those of `export`."""
        check_grids(self.model, self.target.signed)
        self.say("Tracing the model")
        graph = self._graph(opset)
        file = folder / self.target.file
        self.say(f"Writing {self.target.file}")
        self.target.write(graph, file)
        outputs = [str(value.name) for value in graph.graph.outputs]
        names = matmuls(graph.graph)
        del graph
        size = size_of(file)
        link_quantized(file)
        runs = self.target.engine is not None
        write_beside(self.model, folder, self.companions, tokenizer, runs)
        write_export_json(self.model, folder, self.target.file, self.inputs.example(), outputs)
        comparisons, operations, float_matmuls = None, None, False
        if check and self.engine.version is not None:
            self.say(f"Comparing with the model in {self.engine.name}")
            kept = list(self.inputs.batches(tokenizer) if batches is None else batches)
            comparisons, float_matmuls = self._compared(file, out / self.target.file, kept)
        if self.target.kernels is not None and self.engine.version is not None:
            self.say("Counting integer kernels")
            operations = match(self.model, names, self.target.kernels(file))
        builds = self._compiled(file, out / self.target.file, build)
        ran = f"{self.engine.name} {self.engine.version}" if comparisons is not None else None
        return Export(
            folder=out,
            file=out / self.target.file,
            target=self.target.name,
            size=size,
            operations=operations,
            comparisons=comparisons,
            engine=ran,
            float_matmuls=float_matmuls,
            builds=builds,
        )

    def _compiled(self, file: Path, place: Path, capabilities: Sequence[str]) -> tuple[Build, ...]:
        """Return the file as TensorRT for RTX compiles it for some compute capabilities."""
        if not capabilities:
            return ()
        (shape,) = (self.inputs.fixed,) if self.inputs.fixed else cut([SHAPE], self.inputs.longest)
        try:
            return tuple(build_all(file, capabilities, shape, self.say))
        except EngineError as error:
            reason = str(error).replace(str(file), str(place))
            raise ExportError(f"{reason} Nothing was written.") from error

    def _graph(self, opset: int | None) -> ir.Model:
        """Return the target's graph."""
        graph = trace(
            self.model,
            self.inputs.example(),
            self.inputs.axes(),
            self.target.opset if opset is None else opset,
            self.head,
        )
        rewriter = Rewriter(graph, self.model)
        for rules in self.target.passes:
            apply(rewriter, *rules)
        RemoveUnusedNodesPass()(graph)
        graph.opset_imports.pop(DOMAIN, None)
        graph.opset_imports.update(self.target.domains)
        name_after_modules(graph.graph)
        graph.producer_name = "qdqpatch"
        return graph

    def _compared(
        self, file: Path, place: Path, batches: list[dict[str, Tensor]]
    ) -> tuple[list[OutputComparison], bool]:
        """Return the differences between file and model, if they are small enough, and `float_matmuls`."""
        # A file for ONNX Runtime is to be exact as its users run it, without settings of ours.
        exact = self.target.engine is not ONNX_RUNTIME
        try:
            session = self.engine.load(file, exact=exact)
        except EngineError as error:
            reason = str(error).replace(str(file), str(place))
            raise ExportError(f"The engine refuses the file, and nothing was written: {reason}") from error
        reference = outputs_of(self.model, self.head)
        classifier = classifier_of(self.model)
        comparisons = compare(reference, session.run_tensors, batches, classifier)
        float_matmuls = session.float_matmuls
        del session
        require_equal(comparisons, lambda: own_noise(self.model, reference, batches, classifier))
        return comparisons, float_matmuls
