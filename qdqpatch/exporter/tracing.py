"""From a patched model to an ONNX graph whose quantized operations are whole (`symbolic_operators.py`)."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch.data.arrays import Array
from qdqpatch.errors import ExportError, QdqError, one_line
from qdqpatch.exporter import symbolic_operators as operators
from qdqpatch.exporter.epsilons import keep_epsilons
from qdqpatch.exporter.settings import settings_of
from qdqpatch.exporter.translations import TABLE
from qdqpatch.nn.pooling import SentenceHead, mask_of
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.arguments import by_name
from qdqpatch.patching.quiet import quiet_export
from qdqpatch.spelling import spelled

Batch = dict[str, Tensor]

HIDDEN, LOGITS, SENTENCE = "last_hidden_state", "logits", "sentence_embedding"


class Traces:
    """The graphs of models: one trace serves every target, and other models that it would be the same of.

    In a graph, quantized layers and quantizers stand by their paths alone, so that their weights and ranges
    may be others. The float layers' tensors are in it themselves, not copied: a graph of which some were
    changed since, as training does, is not used again.

    Args:
        kept: How many graphs are kept, the last ones used; None for all.
    """

    def __init__(self, kept: int | None = 2) -> None:
        self._kept = kept
        self._graphs: dict[Hashable, tuple[ir.Model, dict[str, Tensor]]] = {}

    def trace(
        self,
        model: PreTrainedModel,
        inputs: Batch,
        axes: Mapping[str, Mapping[int, str]],
        opset: int,
        head: SentenceHead | None = None,
    ) -> ir.Model:
        """Return the graph, to change at will, with operators of the domain `qdqpatch` where it is quantized.

        Args:
            model: A quantized model in eval mode, on the CPU and in fp32.
            inputs: Keyword arguments of its `forward`, each with at least 2 along every dynamic axis.
            axes: The dynamic axes of each input: number and name.
            opset: Version of the standard operators.
            head: Makes the output `sentence_embedding` of the hidden states; None for no such output.

        Raises:
            ExportError: If the model cannot be traced, or has an operation that ONNX has not.
        """
        whole = _Outputs(model, head)
        sizes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in inputs.items())
        named = tuple((name, *sorted(numbers.items())) for name, numbers in axes.items())
        parts = tuple((path, type(part), settings_of(part)) for path, part in whole.named_modules())
        ends = None if head is None else (str(head), head.pooling.modes)
        tensors = dict(_tensors(whole))
        hashed = _hash(tensors)
        key = (sizes, named, opset, ends, parts, hashed)
        graph, traced_with = self._graphs.pop(key, (None, tensors))
        if graph is None or (traced_with is not tensors and _hash(traced_with) != hashed):
            traced_with = tensors
            try:
                graph = _traced(whole, inputs, axes, opset)
            except (QdqError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # whatever a model's own code raises, and torch of it
                raise ExportError(_cannot_be_traced(model, inputs, axes, error)) from error
        self._graphs[key] = graph, traced_with
        if self._kept is not None and len(self._graphs) > self._kept:
            del self._graphs[next(iter(self._graphs))]
        return graph.clone()


def _tensors(whole: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a trace has in it, by their paths."""
    for path, part in whole.named_modules():
        if not isinstance(part, tuple(operators.SYMBOLIC)):
            own = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
            others = ((name, value) for name, value in vars(part).items() if isinstance(value, Tensor))
            for name, tensor in (*own, *others):
                yield f"{path}.{name}", tensor


def _hash(tensors: Mapping[str, Tensor]) -> bytes:
    """Return what tells tensors apart."""
    found = hashlib.blake2b()
    for path, tensor in tensors.items():
        found.update(f"{path} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.digest()


def _traced(whole: _Outputs, inputs: Batch, axes: Mapping[str, Mapping[int, str]], opset: int) -> ir.Model:
    """Return the graph; arguments are those of `Traces.trace`."""
    operators.register()
    shapes = {name: dict.fromkeys(axes.get(name, {}), torch.export.Dim.DYNAMIC) or None for name in inputs}
    with torch.no_grad():
        names = list(whole.named(inputs))
        with operators.symbolic(whole.model), quiet_export():
            program = torch.export.export(whole, (inputs,), dynamic_shapes=(shapes,), strict=False)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=names,
                optimize=False,
                verbose=False,
                custom_translation_table=TABLE,
            )
            assert exported is not None  # the old exporter returns None
            keep_epsilons(exported.model.graph)
            exported.optimize()
    graph: ir.Model = exported.model
    _name_axes(graph, axes)
    return graph


def _cannot_be_traced(
    model: nn.Module, inputs: Batch, axes: Mapping[str, Mapping[int, str]], error: Exception
) -> str:
    first: BaseException = error
    while first.__cause__ is not None:
        first = first.__cause__
    given = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())
    sizes, fix = "", ""
    if axes:
        sizes = "of any batch and length "
        fix = f"See whether one shape is possible ({spelled('shape=(1, 128)', '--shape 1x128')}). "
    return (
        f"{type(model).__name__} cannot be traced with inputs {sizes}({given}), and nothing was written: "
        f"{one_line(first).rstrip('.')}. {fix}In torch its checkpoint runs as it is."
    )


def named_outputs(result: Mapping[str, Any]) -> dict[str, Tensor]:
    """Name every tensor of a model's output; the i-th of a tuple `name` is `name.i`."""
    tensors: dict[str, Tensor] = {}
    for name, value in result.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, tuple):
            tensors |= {f"{name}.{i}": one for i, one in enumerate(value) if isinstance(one, Tensor)}
    return tensors


def unread_outputs(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the outputs that nothing reads: that of a float pooler where there is no head to read it.

    Texts are compared by the hidden states. Checkpoints without a head often have no weights for a pooler, or
    such as no one has trained since; a configuration that quantizes the pooler says that it is read.
    """
    pooler = getattr(model, "pooler", None)
    if not isinstance(pooler, nn.Module) or any(map(_is_enabled, pooler.modules())):
        return ()
    return ("pooler_output",)


def _is_enabled(module: nn.Module) -> bool:
    """Tell whether a module is a quantizer that is on."""
    return isinstance(module, TensorQuantizer) and module.is_enabled


def outputs_of(
    model: PreTrainedModel, head: SentenceHead | None = None
) -> Callable[[Batch], dict[str, Array]]:
    """Return a function from a batch to the model's outputs by name, as an exported file has them."""
    whole = _Outputs(model, head)

    def outputs(batch: Batch) -> dict[str, Array]:
        with torch.inference_mode():
            return {name: tensor.numpy() for name, tensor in whole.named(batch).items()}

    return outputs


class _Outputs(nn.Module):
    """A model whose inputs are one dict and whose outputs are tensors alone."""

    def __init__(self, model: PreTrainedModel, head: SentenceHead | None) -> None:
        super().__init__()
        self.model, self.head = model, head
        self._unread = unread_outputs(model)

    def forward(self, inputs: Batch) -> tuple[Tensor, ...]:
        return tuple(self.named(inputs).values())

    def named(self, inputs: Batch) -> dict[str, Tensor]:
        """Return the outputs by name, without what nothing reads and a cache of keys and values."""
        takes_cache = "use_cache" in inspect.signature(self.model.forward).parameters
        cache = {"use_cache": False} if takes_cache else {}
        found = named_outputs(self.model(**inputs, **cache, **by_name(self.model)))
        named = {name: tensor for name, tensor in found.items() if name not in self._unread}
        if self.head is not None:  # last: some servers take the first output, whatever its name
            named[SENTENCE] = self.head(named[HIDDEN], mask_of(inputs))
        return named


def _name_axes(graph: ir.Model, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Call the dynamic axes by their names, in inputs and outputs."""
    names: dict[str | None, str] = {}
    for value in graph.graph.inputs:
        for axis, name in axes.get(value.name or "", {}).items():
            dim = value.shape[axis] if value.shape is not None else None
            if isinstance(dim, ir.SymbolicDim):
                names[dim.value] = name
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape(
                [names.get(dim.value, dim) if isinstance(dim, ir.SymbolicDim) else dim for dim in value.shape]
            )
