"""How far the layers of a quantized model get from what they return in float, as a loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch.calibration.comparing import SMALLEST_NORM
from qdqpatch.calibration.observing import on_device
from qdqpatch.calibration.padding import Padding
from qdqpatch.nn.fake_quantize import at_least_fp32
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import enabled_quantizers
from qdqpatch.patching.arguments import run

Batch = Mapping[str, Any]


class Reconstruction:
    """Compares the outputs of the quantized model's layers with those of the float one's.

    Args:
        model: The model, with quantization switched off.
        layers: Its layers.
        padding_aware: Whether positions that the attention mask hides are left out.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[nn.Module], padding_aware: bool) -> None:
        self.model = model
        self._layers = layers
        self._padding_aware = padding_aware
        self._quantizers = list(enabled_quantizers(model).values())

    def loss(self, batch: Batch) -> Tensor:
        """Return the squared error relative to the float output, the mean over layers and data, 0-dim."""
        inputs = on_device(batch, self.model.device)
        with torch.no_grad():
            expected = self._outputs(inputs)
        with quantizing(self._quantizers):
            found = self._outputs(inputs)
        padding = Padding(batch) if self._padding_aware else None
        errors = []
        for a, b in zip(found, expected, strict=True):
            a, b = at_least_fp32(a), at_least_fp32(b)
            norm = b.square().sum(-1, keepdim=True).clamp(min=SMALLEST_NORM)
            relative = (a - b).square().sum(-1, keepdim=True) / norm
            errors.append((relative if padding is None else padding.data(relative, "")[0]).mean())
        return torch.stack(errors).mean()

    def error(self, batches: Iterable[Batch]) -> Tensor:
        """Return the sum of the losses."""
        with torch.no_grad():
            losses = [self.loss(batch) for batch in batches]
            return torch.stack(losses).sum() if losses else torch.zeros((), device=self.model.device)

    def _outputs(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        outputs: list[Tensor] = []
        with ExitStack() as stack:
            for layer in self._layers:
                hook = layer.register_forward_hook(
                    lambda _, __, output: outputs.append(output if isinstance(output, Tensor) else output[0])
                )
                stack.callback(hook.remove)
            run(self.model, inputs)
        return outputs


@contextmanager
def quantizing(quantizers: Sequence[TensorQuantizer]) -> Iterator[None]:
    """Let quantizers that are switched off quantize inside the block."""
    for quantizer in quantizers:
        quantizer._if_quant = True
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer._if_quant = False


def quantized_layers(model: nn.Module) -> list[nn.Module]:
    """Return the members of the model's lists of layers that hold quantizers."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return [
        layer
        for layers in lists
        for layer in layers
        if any(isinstance(module, TensorQuantizer) for module in layer.modules())
    ]
