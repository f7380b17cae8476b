"""Find tensors of a model that hold NaN or infinity, before work is put into it or it is written."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qdqpatch.errors import CheckpointError, QdqError
from qdqpatch.spelling import counted


def check_finite(
    model: nn.Module, subject: str, advice: str = "", error: type[QdqError] = CheckpointError
) -> None:
    """Find out whether all numbers of a model are numbers.

    Args:
        model: Any model.
        subject: What the message calls it.
        advice: What to do, as a sentence.
        error: What is raised.

    Raises:
        QdqError: If a parameter, a buffer that is saved or a range holds NaN or infinity.
    """
    if bad := not_finite(model):
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise error(
            f"{subject} holds NaN or infinity in {len(bad)} of {counted(len(model.state_dict()), 'tensor')}: "
            f"{', '.join(bad[:3])}{more}.{f' {advice}' if advice else ''}"
        )


def not_finite(model: nn.Module) -> list[str]:
    """Return the names of the parameters, saved buffers and ranges that hold NaN or infinity."""
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor)
        and tensor.is_floating_point()
        and tensor.itemsize > 1  # there is no comparison for FP8
        and tensor.numel()
        and not tensor.is_meta
    }
    if not tensors:
        return []
    flags = [_is_finite(tensor) for tensor in tensors.values()]
    finite = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()  # a device is waited for once
    return [name for name, is_finite in zip(tensors, finite, strict=True) if not is_finite]


def _is_finite(tensor: Tensor) -> Tensor:
    """Look at the ends alone, which NaN and infinity show in: nothing of the tensor's size is made."""
    lowest, highest = tensor.detach().aminmax()
    return lowest.isfinite() & highest.isfinite()
