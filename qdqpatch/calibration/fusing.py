"""One range for query, key and value.

`fuse_qkv` has the meaning of the function of that name in `quant_trainer.py` (NVIDIA; transformers 4.40,
`examples/research_projects/quantization-qdqbert/quant_trainer.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from qdqpatch.calibration.selecting import (
    Model,
    check_can_share,
    check_quantized,
    enabled_of,
    load_ranges,
    range_of,
)
from qdqpatch.errors import ConfigError
from qdqpatch.nn.names import MATMUL, WEIGHT
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.spelling import spelled

PROJECTIONS = (
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
)
"""What architectures call the three Linears of their attention modules."""


def fuse_qkv(model: Model) -> Model:
    """Give query, key and value one range, the largest of the three, in place.

    An engine that computes the three projections as one GEMM has one scale for its output, and with
    per-tensor weights one for its weight. So the quantizers `matmul_{q,k,v}_input_quantizer` of each
    self-attention take the largest of their ranges, and so do the three weights unless they have a range
    per output channel. Inputs of the Linears keep their ranges: the three read the same tensor.
    Cross-attention, whose key and value read another tensor, cannot be one GEMM and is left alone.

    Args:
        model: A quantized and calibrated model.

    Returns:
        The same model.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        CalibrationError: If one of the quantizers has no range.
        ConfigError: If there is nothing to fuse, an operand of a matmul has a range per channel, or the
            configuration fixes another range of one.

    Whatever is raised, the ranges are as they were.
    """
    fused = {}
    for group in groups_to_fuse(model):
        ranges = {path: range_of(path, quantizer) for path, quantizer in group.items()}
        largest = _largest(ranges)
        fused.update({path: largest.to(amax.device).reshape(amax.shape) for path, amax in ranges.items()})
    return load_ranges(model, fused)


def groups_to_fuse(model: nn.Module) -> list[dict[str, TensorQuantizer]]:
    """Return the quantizers, by path, that `fuse_qkv` gives one range, group by group.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        ConfigError: If there is nothing to fuse, or those of a group cannot have one range.
    """
    check_quantized(model)
    groups = [group for group in _qkv(model) if len(group) > 1]
    if not groups:
        raise ConfigError(
            "There is nothing to fuse: no self-attention has quantizers on query, key and value, nor "
            f"per-tensor weights. {spelled('QDQConfig(matmuls=True)', '--preset qdqbert')} quantizes the "
            "operands."
        )
    for group in groups:
        _check_alike(group)
        check_can_share(group)
    return groups


def _check_alike(group: Mapping[str, TensorQuantizer]) -> None:
    for path, quantizer in group.items():
        if not _is_per_tensor(quantizer):
            raise ConfigError(f"{path} has a range per channel, and only ranges per tensor can be fused.")
        other = next((path for path, other in group.items() if other.is_symmetric), None)
        if not quantizer.is_symmetric and other is not None:
            raise ConfigError(f"{path} has a zero point and {other} has none: quantize all three alike.")


def _largest(ranges: Mapping[str, Tensor]) -> Tensor:
    if all(len(interval.shape) == 1 and len(interval) == 2 for interval in ranges.values()):
        low, high = torch.stack([interval.cpu() for interval in ranges.values()]).unbind(1)
        return torch.stack([low.amin(), high.amax()])
    first = next(iter(ranges.values()))
    return torch.stack([amax.reshape(()).to(first.device) for amax in ranges.values()]).amax()


def _qkv(model: nn.Module) -> Iterator[dict[str, TensorQuantizer]]:
    """Yield the quantizers that must agree: of each self-attention the operands, then the weights."""
    for path, module in model.named_modules():
        if _is_cross_attention(path, module):
            continue
        operands = [MATMUL[operand] for operand in "qkv"]
        yield enabled_of((f"{path}.{name}", module._modules.get(name)) for name in operands)
        for names in PROJECTIONS:
            linears = {name: module._modules.get(name) for name in names}
            if all(isinstance(linear, nn.Linear) for linear in linears.values()):
                weights = enabled_of(
                    (f"{path}.{name}.{WEIGHT}", linear._modules.get(WEIGHT))
                    for name, linear in linears.items()
                    if linear is not None
                )
                yield {name: weight for name, weight in weights.items() if _is_per_tensor(weight)}


def _is_cross_attention(path: str, module: nn.Module) -> bool:
    """Whether key and value read another tensor than query, which only names tell."""
    names = [*path.split(".")[-2:], type(module).__name__.lower()]  # crossattention.self, BertCrossAttention
    return any(word in name for name in names for word in ("crossatt", "cross_att", "encoder_attn"))


def _is_per_tensor(quantizer: TensorQuantizer) -> bool:
    return quantizer.axis is None if quantizer.amax is None else quantizer.amax.numel() == 1
