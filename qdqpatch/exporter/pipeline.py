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

from qdqpatch.engines.sessions import ONNX_RUNTIME, Engine
from qdqpatch.engines.shapes import cut
from qdqpatch.engines.tensorrt.build import SHAPE, Build, build_all
from qdqpatch.errors import EngineError, ExportError
from qdqpatch.exporter.check import OutputComparison, compare, own_noise, require_equal
from qdqpatch.exporter.graph import Rewriter
from qdqpatch.exporter.grids import check_grids
from qdqpatch.exporter.inputs import Inputs
from qdqpatch.exporter.kernels import match, matmuls, name_after_modules
from qdqpatch.exporter.result import Export
from qdqpatch.exporter.rules.base import apply
from qdqpatch.exporter.symbolic_operators import DOMAIN
from qdqpatch.exporter.targets.base import Target
from qdqpatch.exporter.tracing import outputs_of, trace
from qdqpatch.output.folder import OutputFolder
from qdqpatch.tasks.head import classifier_of


@dataclass(frozen=True)
class Pipeline:
    """What the steps need.

    Attributes:
        model: As `preparing.prepared` gives it.
        target: What to export for.
        inputs: Makes batches for the model.
        say: Called with what begins.
    """

    model: PreTrainedModel
    target: Target
    inputs: Inputs
    say: Callable[[str], None]

    @property
    def engine(self) -> Engine:
        """Where the file is run: the target's own engine, or ONNX Runtime."""
        return self.target.engine or ONNX_RUNTIME

    def run(
        self,
        output: OutputFolder,
        opset: int | None,
        tokenizer: Any,
        check: bool,
        batches: Iterable[dict[str, Tensor]] | None,
        build: Sequence[str] = (),
    ) -> Export:
        """Export to a folder that is kept only if all succeeds; the arguments are those of `export`."""
        check_grids(self.model, self.target.signed)
        self.say("Tracing the model")
        graph = self._graph(opset)
        out = output.given
        with output.staged() as folder:
            self.say(f"Writing {self.target.file}")
            self.target.write(graph, folder)
            names = matmuls(graph.graph)
            del graph
            files = folder.glob(f"{Path(self.target.file).stem}.*")
            size = sum(each.stat().st_size for each in files)
            self.model.config.save_pretrained(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            file, comparisons, operations = folder / self.target.file, None, None
            float_matmuls = False
            if check and self.engine.version is not None:
                self.say(f"Comparing with the model in {self.engine.name}")
                kept = list(self.inputs.batches(tokenizer) if batches is None else batches)
                comparisons, float_matmuls = self._compared(file, out, kept)
            if self.target.kernels is not None and self.engine.version is not None:
                self.say("Counting integer kernels")
                operations = match(self.model, names, self.target.kernels(file))
            builds = self._compiled(file, out, build)
        ran = f"{self.engine.name} {self.engine.version}" if comparisons is not None else None
        return Export(
            out, out / file.name, self.target.name, size, operations, comparisons, ran, float_matmuls, builds
        )

    def _compiled(self, file: Path, out: Path, capabilities: Sequence[str]) -> tuple[Build, ...]:
        """Return the file as TensorRT for RTX compiles it for some compute capabilities."""
        if not capabilities:
            return ()
        (shape,) = (self.inputs.fixed,) if self.inputs.fixed else cut([SHAPE], self.inputs.longest)
        try:
            return tuple(build_all(file, capabilities, shape, self.say))
        except EngineError as error:
            reason = str(error).replace(str(file.parent), str(out))
            raise ExportError(f"{reason} Nothing was written.") from error

    def _graph(self, opset: int | None) -> ir.Model:
        """Return the target's graph."""
        graph = trace(
            self.model,
            self.inputs.example(),
            self.inputs.axes(),
            self.target.opset if opset is None else opset,
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
        self, file: Path, out: Path, batches: list[dict[str, Tensor]]
    ) -> tuple[list[OutputComparison], bool]:
        """Return the differences between file and model, if they are small enough, and `float_matmuls`."""
        # A file for ONNX Runtime is to be exact as its users run it, without settings of ours.
        exact = self.target.engine is not ONNX_RUNTIME
        try:
            session = self.engine.load(file, exact=exact)
        except EngineError as error:
            reason = str(error).replace(str(file.parent), str(out))
            raise ExportError(f"The engine refuses the file, and nothing was written: {reason}") from error
        reference = outputs_of(self.model)
        classifier = classifier_of(self.model)
        comparisons = compare(reference, session.run_tensors, batches, classifier)
        float_matmuls = session.float_matmuls
        del session
        require_equal(comparisons, lambda: own_noise(self.model, reference, batches, classifier))
        return comparisons, float_matmuls
