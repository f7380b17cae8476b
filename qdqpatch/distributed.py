"""Several processes that do the same work on a share of the data each, over `torch.distributed`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from qdqpatch.errors import ProcessError

T = TypeVar("T")


def is_distributed() -> bool:
    """Whether several processes work together, as under `torchrun` or `accelerate launch`."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def processes() -> int:
    """Return how many processes work together."""
    return dist.get_world_size() if is_distributed() else 1


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return not is_distributed() or dist.get_rank() == 0


def share(whole: Sequence[T], block: int = 1) -> list[T]:
    """Return this process's share of a sequence.

    Args:
        whole: The sequence, the same in every process.
        block: How many items that follow each other stay together; blocks go to the processes in turn.
    """
    if not is_distributed():
        return list(whole)
    rank, processes = dist.get_rank(), dist.get_world_size()
    return [item for place, item in enumerate(whole) if place // block % processes == rank]


def gather(found: Mapping[int, T]) -> dict[int, T]:
    """Return what all processes found, by the numbers that they gave it."""
    if not is_distributed():
        return dict(found)
    gathered: list[Mapping[int, T]] = [{}] * dist.get_world_size()
    dist.all_gather_object(gathered, found)
    return {number: value for part in gathered for number, value in part.items()}


def from_first(work: Callable[[], T], device: torch.device) -> T:
    """Do the work in the first process, and return what it found there in all.

    Raises:
        ProcessError: If it failed there; in the first process, what it raised.
    """
    if not is_distributed():
        return work()
    found = [together(lambda: work() if is_first() else None, device)]
    dist.broadcast_object_list(found, device=device)
    result: T = found[0]  # type: ignore[assignment]  # None in the others until now
    return result


def merge_maxima(maxima: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the largest of all processes' maxima, each None where no process has one."""
    gathered: list[Sequence[Tensor | None]] = [()] * dist.get_world_size()
    # On the host, where all of them are: each comes from a device of its own.
    dist.all_gather_object(gathered, [None if one is None else one.cpu() for one in maxima])
    merged = []
    for found in zip(*gathered, strict=True):
        there = [maximum for maximum in found if maximum is not None]
        merged.append(functools.reduce(torch.maximum, there) if there else None)
    return merged


def sum_over_processes(values: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the values with those of the other processes added, on the host.

    Args:
        values: Tensors of the same names and shapes in every process.
        device: Where the processes exchange them.
    """
    summed = {}
    for name, value in values.items():
        total = value.to(device)
        if is_distributed():
            dist.all_reduce(total)
        summed[name] = total.cpu()
    return summed


def found_by_any(found: Collection[str], names: Sequence[str], device: torch.device) -> set[str]:
    """Return those of the names, in every process the same, that one of the processes has found."""
    flags = torch.tensor([float(name in found) for name in names])
    counts = sum_over_processes({"": flags}, device)[""]
    return {name for name, count in zip(names, counts.tolist(), strict=True) if count}


def total(work: Callable[[], Tensor], device: torch.device) -> Tensor:
    """Do the work, and return the sum of what all processes found; it fails in all if it fails in one."""
    result = together(work, device)
    return sum_over_processes({"": result}, device)[""].to(result.device)


def together(work: Callable[[], T], device: torch.device) -> T:
    """Do the work, and fail in every process if it fails in one, so that none waits for it for ever.

    Raises:
        ProcessError: If the work failed in another process.
    """
    if not is_distributed():
        return work()
    failed = torch.tensor(dist.get_rank(), device=device)
    try:
        result = work()
        failed.fill_(-1)
    finally:
        dist.all_reduce(failed, dist.ReduceOp.MAX)
    if failed >= 0:
        raise ProcessError(f"This failed in the process of rank {int(failed)}, which says why.")
    return result
