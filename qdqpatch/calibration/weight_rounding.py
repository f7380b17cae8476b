"""Round weights so that their errors cancel in what Linears compute, instead of to the nearest levels.

GPTQ (Frantar et al., arXiv 2210.17323): a row w of a Linear's weight gives the outputs x^T w, and an error
d of the row costs d^T H d, where H is the sum of x x^T over what the Linear reads. Columns are rounded one
after the other; the error of one is made up for by those after it, as far as H says that their inputs go
together. That needs one pass over the data and a Cholesky factor of H for each Linear, and no gradient.

What counts as x is the quantized input, as the file's integers have it: that is what the weight is
multiplied by. The range of the weight stays, so its levels do; columns of the largest inputs come first,
while all others can still make up for them. Where no pair of levels is too large for kernels that saturate
(`qdqpatch/nn/pairs.py`), none becomes so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch.calibration.input_sums import InputSum, sum_inputs
from qdqpatch.calibration.selecting import check_quantized, plain_linears
from qdqpatch.calibration.undo import restored_if_raised
from qdqpatch.errors import CalibrationError, ConfigError
from qdqpatch.nn.learned import WeightTrackingQuantizer
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.pairs import LIMIT, pairs_fit
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import check_have_ranges, enabled_quantizers

Model = TypeVar("Model", bound=PreTrainedModel)

DAMPING = 0.01
"""What is added to the diagonal of H, as a share of its mean: the paper's."""

BLOCK = 128
"""So many columns are rounded before those after them are told of their errors; it changes nothing else."""

PASS_BYTES = 2**30
"""The matrices H of one pass over the data take so much at most, but for a single larger one."""


def round_weights(model: Model, batches: Iterable[Mapping[str, Any]], padding_aware: bool = True) -> Model:
    """Round the weights of quantized Linears by what they are multiplied by, in place.

    The float model runs on the batches, once for each GiB of matrices of shape `(in_features, in_features)`
    (once for a BERT-base), and its weights become those that the quantizers make of them: it computes about
    what the quantized model does afterwards. A row that would end up with a larger error on this data keeps
    the nearest levels. Round once, after the ranges are final.

    Args:
        model: A quantized and calibrated model.
        batches: Keyword arguments for the model, as a tokenizer returns them; moved to its device.
        padding_aware: Whether positions that the attention mask hides are left out.

    Returns:
        The same model.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        ConfigError: If no Linear has a quantized weight of its own, or the range of one follows its weight,
            so that its levels would move.
        CalibrationError: If there is no batch, one of these Linears has a quantizer without a range or is
            not reached, or reads NaN or infinity.

    Whatever is raised, the model is as it was.
    """
    linears = linears_to_round(model)
    paths = tuple(f"{path}." for path in linears)
    quantizers = enabled_quantizers(model)
    check_have_ranges({path: quantizers[path] for path in quantizers if path.startswith(paths)})
    kept = batches if not isinstance(batches, Iterator) else list(batches)
    with restored_if_raised(model, changed_parameters(linears)):
        for part in _passes(linears):
            for path, moments in _moments(model, part, kept, padding_aware).items():
                with torch.no_grad():
                    linears[path].weight.copy_(_rounded(linears[path], moments))
    return model


def linears_to_round(model: nn.Module) -> dict[str, QuantLinear]:
    """Return the Linears with a quantized weight that no other module shares, by path.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        ConfigError: If there is none, or the range of one follows its weight.
    """
    check_quantized(model)
    linears = {
        path: linear for path, linear in plain_linears(model).items() if linear._weight_quantizer.is_enabled
    }
    if not linears:
        raise ConfigError("There is no weight to round: no plain Linear has a quantized weight of its own.")
    for path, linear in linears.items():
        if isinstance(linear._weight_quantizer, WeightTrackingQuantizer):
            raise ConfigError(
                f"The range of {path}'s weight follows the weight, so that rounding would move its levels. "
                "Round before training, or switch the quantizer to a range that stays."
            )
    return linears


def changed_parameters(linears: Mapping[str, QuantLinear]) -> list[nn.Parameter]:
    """Return what rounding the weights of these Linears changes."""
    return [linear.weight for linear in linears.values()]


def _passes(linears: Mapping[str, QuantLinear]) -> Iterator[dict[str, QuantLinear]]:
    """Split the Linears into those whose matrices fit into memory together, in the model's order."""
    part: dict[str, QuantLinear] = {}
    size = 0
    for path, linear in linears.items():
        own = 4 * linear.in_features**2
        if part and size + own > PASS_BYTES:
            yield part
            part, size = {}, 0
        part[path] = linear
        size += own
    yield part


class _SecondMoments(InputSum):
    """Adds up x x^T of what a Linear multiplies, in fp32, shape `(in_features, in_features)`."""

    def add(self, inputs: Tensor, counts: Tensor) -> None:
        """Add one batch."""
        if self.quantizer.is_enabled:
            inputs = self.quantizer.quantized(inputs, self.quantizer.range_of(inputs))
        rows = torch.where(counts > 0, inputs, 0).flatten(0, -2).float()
        self.total.addmm_(rows.T, rows)


def _moments(
    model: PreTrainedModel,
    linears: Mapping[str, QuantLinear],
    batches: Iterable[Mapping[str, Any]],
    padding_aware: bool,
) -> dict[str, Tensor]:
    """Return each Linear's sum of x x^T over all batches and processes."""
    observers = {
        path: _SecondMoments(linear, torch.zeros(linear.in_features, linear.in_features, device=model.device))
        for path, linear in linears.items()
    }
    moments = sum_inputs(model, observers, batches, padding_aware)
    for path, found in moments.items():
        if not bool(found.isfinite().all()):
            raise CalibrationError(f"{path} saw NaN or infinity. Check weights and inputs.")
    return moments


def _rounded(linear: QuantLinear, moments: Tensor) -> Tensor:
    """Return a Linear's weight on its quantizer's levels, fp32, shape `(out_features, in_features)`."""
    weight, quantizer = linear.weight.detach().float(), linear._weight_quantizer
    amax = quantizer.range_of(weight)
    nearest: Tensor = quantizer.quantized(weight, amax)
    moments = moments.to(weight.device, torch.float64)
    if not bool(moments.any()):
        return nearest
    order = moments.diagonal().argsort(descending=True)
    ranges = amax.expand_as(weight)[:, order]
    found = torch.empty_like(weight)
    pairs = None
    if quantizer.num_bits == 8 and pairs_fit(quantizer.integers(weight).cpu().numpy()):
        pairs = _Pairs(LIMIT * amax / quantizer.levels, _partners(order))
    found[:, order] = _compensated(weight[:, order], moments[order][:, order], quantizer, ranges, pairs)
    errors = [
        ((error @ moments) * error).sum(1)
        for error in ((found - weight).double(), (nearest - weight).double())
    ]
    return torch.where((errors[0] < errors[1])[:, None], found, nearest)


@dataclass(frozen=True)
class _Pairs:
    """What keeps the sums of pairs of levels small.

    Attributes:
        limit: What the two weights may add up to, shape `(out_features, 1)` or 0-dim.
        partners: For each column the other one of its pair; its own number if it has none.
    """

    limit: Tensor
    partners: list[int]

    def clip(self, values: Tensor, column: int, rounded: Tensor) -> Tensor:
        """Return a column's values, clipped to what the partner leaves if it is rounded already."""
        partner = self.partners[column]
        if partner >= column:
            return values
        other = rounded[:, partner : partner + 1]
        return values.clamp(-self.limit - other, self.limit - other)


def _partners(order: Tensor) -> list[int]:
    """Return for each position in an order of columns the position of the other column of its pair."""
    positions = torch.empty_like(order)
    positions[order] = torch.arange(len(order), device=order.device)
    partners: list[int] = positions[(order ^ 1).where(order ^ 1 < len(order), order)].tolist()
    return partners


def _compensated(
    weight: Tensor, moments: Tensor, quantizer: TensorQuantizer, ranges: Tensor, pairs: _Pairs | None = None
) -> Tensor:
    """Return the weight rounded column by column, each making up for the errors of those before it."""
    size = len(moments)
    damped = moments + DAMPING * moments.diagonal().mean() * torch.eye(
        size, dtype=moments.dtype, device=moments.device
    )
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    left, result = weight.clone(), torch.empty_like(weight)
    for start in range(0, size, BLOCK):
        end = min(start + BLOCK, size)
        errors = torch.empty_like(left[:, start:end])
        for column in range(start, end):
            values = left[:, column : column + 1]
            fitting = values if pairs is None else pairs.clip(values, column, result)
            result[:, column : column + 1] = quantizer.quantized(fitting, ranges[:, column : column + 1])
            error = (values - result[:, column : column + 1]) / factor[column, column]
            left[:, column:end] -= error * factor[column, column:end]
            errors[:, column - start : column - start + 1] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    return result
