"""An export, step by step: trace, rewrite for the target, write, run in the engine, compare, count."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor
from transformers import PreTrainedModel

from qdqpatch.checkpoint.companions import Companions
from qdqpatch.data.arrays import Array
from qdqpatch.engines.sessions import ONNX_RUNTIME, Engine
from qdqpatch.engines.shapes import cut
from qdqpatch.engines.tensorrt.build import SHAPE, Build, build_all
from qdqpatch.errors import EngineError, ExportError
from qdqpatch.exporter.check import OutputComparison, compare, own_noise, remembered, require_equal
from qdqpatch.exporter.graph import Rewriter
from qdqpatch.exporter.grids import check_grids, has_float8
from qdqpatch.exporter.inputs import Inputs
from qdqpatch.exporter.kernels import (
    Operation,
    match,
    matmuls,
    name_after_modules,
    name_products,
    number_runs,
)
from qdqpatch.exporter.layout import link_quantized, size_of, write_beside, write_export_json
from qdqpatch.exporter.options import ExportOptions
from qdqpatch.exporter.precision import OPSET, Precision, check_fits, convert_ends, lower
from qdqpatch.exporter.result import Export
from qdqpatch.exporter.rules.base import apply
from qdqpatch.exporter.symbolic_operators import DOMAIN
from qdqpatch.exporter.targets.base import Target
from qdqpatch.exporter.tracing import LOGITS, SENTENCE, Traces, outputs_of
from qdqpatch.exporter.triton import write_triton
from qdqpatch.nn.pooling import SentenceHead
from qdqpatch.output.manifest import read_sections
from qdqpatch.output.record import write_record
from qdqpatch.output.temporary import temporary_folder
from qdqpatch.tasks.head import classifier_of

CANARIES = ("A cat sat on the mat.", "How long did the detour last?", "The bridge was closed for repairs.")
"""Texts whose vectors tell whether another machine computes the same."""


@dataclass(frozen=True)
class Pipeline:
    """What the steps need.

    Attributes:
        model: As `preparing.prepared` gives it.
        target: What to export for.
        inputs: Makes batches for the model.
        options: What was asked for.
        precision: The type of what stays float.
        companions: What goes along with the file; None for nothing.
        head: What makes a text's embedding; None for a model that has none.
        traces: What was traced already, for another target.
    """

    model: PreTrainedModel
    target: Target
    inputs: Inputs
    options: ExportOptions
    precision: Precision
    companions: Companions | None
    head: SentenceHead | None
    traces: Traces

    @property
    def engine(self) -> Engine:
        """Where the file is run: the target's own engine, or ONNX Runtime."""
        return self.target.engine or ONNX_RUNTIME

    def run(self, folder: Path, out: Path) -> Export:
        """Export to a folder that becomes `out` in the end."""
        options, tokenizer = self.options, self.options.tokenizer
        if not options.as_float:
            check_grids(self.model, self.target.signed, self.target.float8, self.target.name)
        kept = list(self.inputs.batches(tokenizer) if options.batches is None else options.batches)
        if self.precision.name != "float32":
            options.say(f"Looking for numbers beyond {self.precision.name}")
            check_fits(self.model, kept, self.precision)
        options.say("Tracing the model")
        graph = self._graph()
        file, place = folder / self.target.file, out / self.target.file
        comparisons, operations, float_matmuls = None, None, False
        if options.check and not self.precision.is_run:
            with temporary_folder() as exact:
                self.target.write(graph, exact / self.target.file)
                comparisons, float_matmuls = self._compared(exact / self.target.file, place, kept)
        options.say(f"Writing {self.target.file}")
        lower(graph, self.precision)
        convert_ends(graph, options.int32_inputs, options.float32_outputs)
        self.target.write(graph, file)
        if options.triton:
            write_triton(graph.graph, file, folder)
        outputs = [str(value.name) for value in graph.graph.outputs]
        names = matmuls(graph.graph)
        del graph
        size = size_of(file)
        if not options.as_float:
            link_quantized(file)
        runs = self.target.engine is not None
        write_beside(self.model, folder, self.companions, tokenizer, runs)
        write_export_json(self.model, folder, self.target.file, self.inputs.example(), outputs)
        if options.check and self.precision.is_run:
            options.say(f"Comparing with the model in {self.engine.name}")
            comparisons, float_matmuls = self._compared(file, place, kept)
        if self.target.kernels is not None and self.engine.is_installed and not options.as_float:
            options.say("Counting integer kernels")
            operations = match(self.model, names, self.target.kernels(file))
        builds = self._compiled(file, place)
        self._record(folder, size, comparisons, operations)
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

    def _record(
        self,
        folder: Path,
        size: int,
        comparisons: list[OutputComparison] | None,
        operations: list[Operation] | None,
    ) -> None:
        """Write into the manifest what was exported, and texts with the vectors of the model."""
        entry = {
            "target": self.target.name,
            "cpu": self.target.cpu,
            "float": self.options.as_float,
            "bytes": size,
            "engine": f"{self.engine.name} {self.engine.version}" if comparisons is not None else None,
            "matmuls": None if operations is None else len(operations),
            "integer": None if operations is None else sum(operation.integer for operation in operations),
            "steps": {comparison.output: comparison.mean for comparison in comparisons or ()},
        }
        exports = read_sections(folder).get("exports", {}) | {self.target.file: entry}
        tokenizer = self.options.tokenizer
        canaries = None if tokenizer is None else self._canaries(tokenizer)
        write_record(self.model, folder, exports=exports, canaries=canaries)

    def _canaries(self, tokenizer: Any) -> list[dict[str, Any]] | None:
        """Return texts with the model's embeddings or logits; None if the head gives neither of a text."""
        batch = tokenizer(list(CANARIES), padding=True, return_tensors="pt")
        example = self.inputs.example()
        if not example.keys() <= {*batch} or self.inputs.fixed is not None:
            return None
        found = outputs_of(self.model, self.head)({name: batch[name] for name in example})
        output = next((name for name in (SENTENCE, LOGITS) if name in found and found[name].ndim == 2), None)
        if output is None:
            return None
        return [
            {"text": text, "output": output, "vector": [round(float(number), 6) for number in vector]}
            for text, vector in zip(CANARIES, found[output], strict=True)
        ]

    def _compiled(self, file: Path, place: Path) -> tuple[Build, ...]:
        """Return the file as TensorRT for RTX compiles it for the compute capabilities asked for."""
        if not self.options.build:
            return ()
        (shape,) = (self.inputs.fixed,) if self.inputs.fixed else cut([SHAPE], self.inputs.longest)
        try:
            return tuple(build_all(file, self.options.build, shape, self.options.say))
        except EngineError as error:
            reason = str(error).replace(str(file), str(place))
            raise ExportError(f"{reason} Nothing was written.") from error

    @property
    def _opset(self) -> int:
        if self.options.opset is not None:
            return self.options.opset
        plain = self.precision.name == "float32" and not has_float8(self.model)
        return self.target.opset if plain else max(self.target.opset, OPSET)

    def _graph(self) -> ir.Model:
        """Return the target's graph."""
        graph = self.traces.trace(
            self.model,
            self.inputs.example(),
            self.inputs.axes(),
            self._opset,
            self.head,
        )
        name_products(graph.graph)
        rewriter = Rewriter(graph, self.model)
        for rules in self.target.passes:
            apply(rewriter, *rules)
        RemoveUnusedNodesPass()(graph)
        graph.opset_imports.pop(DOMAIN, None)
        graph.opset_imports.update(self.target.domains)
        name_after_modules(graph.graph)
        number_runs(graph.graph)
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
        expected = remembered(reference)
        classifier = classifier_of(self.model)
        given = {value.name: value.dtype for value in session.inputs}

        def run(batch: dict[str, Tensor]) -> dict[str, Array]:
            return session.run(
                {name: tensor.numpy().astype(given.get(name)) for name, tensor in batch.items()}
            )

        comparisons = compare(expected, run, batches, classifier)
        float_matmuls = session.float_matmuls
        require_equal(
            comparisons,
            lambda: own_noise(self.model, reference, batches, classifier, self.precision.rounding, expected),
        )
        return comparisons, float_matmuls
