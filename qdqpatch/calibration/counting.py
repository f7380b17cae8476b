"""Count the tensors of one batch, each once, however many quantizers read it.

A CPU counts a tensor at once, while it is in its cache. On other devices every operation has to be launched,
which takes longer than counting: there tensors are kept until many of one size are counted together.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qdqpatch.calibration.histogram import LARGEST_CALL, Histogram, add_all
from qdqpatch.calibration.padding import POSITIONS, Padding

KEPT_BYTES = 2**28
"""Of tensors that wait to be counted together, on devices other than the CPU."""

KEPT_TENSORS = 2**10
"""That wait at the most: the numbers of all their bins have to be exact in fp32."""


@dataclass(eq=False)
class _Counted:
    """One tensor's histogram, or what it is to be made of, and who waits for it.

    Attributes:
        values: A copy of what is to be counted; None once it is.
        hidden_zeros: How many of the values are zeros that are no data.
        waiting: The histograms that are to take this one's counts.
        histogram: The counts, once there.
    """

    values: Tensor | None = None
    hidden_zeros: Tensor | int = 0
    waiting: list[Histogram] = field(default_factory=list)
    histogram: Histogram | None = None


class BatchCounts:
    """The histograms of one batch's tensors, each tensor counted once, whoever reads it.

    Query, key, value and the residual add read the same tensor, as do the intermediate Linear and the
    second residual add.

    Args:
        padding: What of the batch is data; None if everything is.
        kept_bytes: Of tensors that wait to be counted together; 0 to count each at once, None for what
            the tensors' device does best.
    """

    def __init__(self, padding: Padding | None, kept_bytes: int | None = None) -> None:
        self._padding = padding
        self._limit = kept_bytes
        self._known: dict[tuple[int, str], tuple[weakref.ref[Tensor], int, _Counted]] = {}
        self._waiting: list[_Counted] = []
        self._bytes = 0

    def count(self, tensor: Tensor, name: str, total: Histogram) -> None:
        """Add what the quantizer `name` sees to a histogram, at the latest when the batch is finished."""
        counted = self._counted(tensor, name)
        if counted.histogram is not None:
            total.add(counted.histogram)
        else:
            counted.waiting.append(total)

    def finish(self) -> None:
        """Count what waits."""
        groups: dict[tuple[int, torch.dtype, torch.device], list[_Counted]] = {}
        for counted in self._waiting:
            assert counted.values is not None
            values = counted.values
            groups.setdefault((values.numel(), values.dtype, values.device), []).append(counted)
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        for group in groups.values():
            values = torch.stack([counted.values for counted in group if counted.values is not None])
            for counted in group:
                counted.values = None
            found = Histogram.of_rows(values, [counted.hidden_zeros for counted in group])
            for counted, histogram in zip(group, found, strict=True):
                counted.histogram = histogram
        for totals, found in _rounds(waiting):
            add_all(totals, found)

    def shown(self, tensor: Tensor, name: str) -> Tensor:
        """Return the tensor that the quantizer `name` sees with zeros for what is no data."""
        return tensor if self._padding is None else self._padding.zeroed(tensor, name)

    def data(self, tensor: Tensor) -> Tensor:
        """Return the positions of a tensor `(batch, positions, ...)` that are data."""
        return tensor if self._padding is None else self._padding.data(tensor, "")[0]

    def _counted(self, tensor: Tensor, name: str) -> _Counted:
        if tensor.is_inference():  # it does not tell whether it was changed since
            return self._take(tensor, name)
        layout = name if name in POSITIONS else ""
        known = self._known.get((id(tensor), layout))
        if known is not None and known[0]() is tensor and known[1] == tensor._version:
            return known[2]
        counted, key = self._take(tensor, name), (id(tensor), layout)
        forget = functools.partial(self._forget, key)
        self._known[key] = weakref.ref(tensor, forget), tensor._version, counted
        return counted

    def _forget(self, key: tuple[int, str], _: weakref.ref[Tensor]) -> None:
        self._known.pop(key, None)

    def _take(self, tensor: Tensor, name: str) -> _Counted:
        """Count a tensor, or keep a copy of it until more of its size are there."""
        values, hidden_zeros = (
            (tensor, 0) if self._padding is None else self._padding.data(tensor.detach(), name)
        )
        limit = (0 if tensor.device.type == "cpu" else KEPT_BYTES) if self._limit is None else self._limit
        size = values.numel() * values.element_size()
        if size > limit or not 0 < values.numel() <= LARGEST_CALL:
            return _Counted(histogram=Histogram.of(values, hidden_zeros))
        if self._bytes + size > limit or len(self._waiting) == KEPT_TENSORS:
            self.finish()
        self._bytes += size
        # The model may change the tensor that it goes on with; rows without padding are a copy already.
        flat = values.reshape(-1)
        if flat.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
            flat = flat.clone()
        counted = _Counted(flat, hidden_zeros)
        self._waiting.append(counted)
        return counted


def _rounds(counted: Iterable[_Counted]) -> Iterator[tuple[list[Histogram], list[Histogram]]]:
    """Yield histograms and what is to be added to each, none of them twice at a time."""
    left = [(total, one.histogram) for one in counted if one.histogram for total in one.waiting]
    while left:
        turn: dict[int, tuple[Histogram, Histogram]] = {}
        later = []
        for total, found in left:
            if turn.setdefault(id(total), (total, found))[1] is not found:
                later.append((total, found))
        yield [total for total, _ in turn.values()], [found for _, found in turn.values()]
        left = later
