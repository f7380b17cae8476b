"""The model as it is exported: in eval mode, in fp32, on the CPU, its feed forwards whole."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from qdqpatch.nn.linear import QuantEmbedding
from qdqpatch.nn.names import WEIGHT
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.nn.toolkit import QuantDescriptor
from qdqpatch.patching.chunks import unchunked


@contextmanager
def prepared(model: PreTrainedModel, int8_embeddings: bool) -> Iterator[PreTrainedModel]:
    """Give the model, or a copy where it is not in fp32 or on another device; it is left as it was.

    Args:
        model: A quantized model.
        int8_embeddings: Whether to give every float embedding a quantizer with a range for each row.
    """
    if any(tensor.device.type != "cpu" or tensor.dtype != torch.float32
           for tensor in model.parameters()):  # fmt: skip
        model = copy.deepcopy(model).cpu().float()
    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
        model.eval()
        stack.enter_context(unchunked(model))
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if int8_embeddings:
            for module in list(model.modules()):
                if type(module) is nn.Embedding:
                    stack.callback(_dequantize, module)
                    module.add_module(WEIGHT, TensorQuantizer(QuantDescriptor(axis=0)).eval())
                    module.__class__ = QuantEmbedding
        yield model


def _dequantize(embedding: nn.Module) -> None:
    embedding.__class__ = nn.Embedding
    del embedding._weight_quantizer
