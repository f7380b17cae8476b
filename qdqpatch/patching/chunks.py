"""Feed forwards that transformers computes for some positions at a time, to need less memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

CHUNKED = "chunk_size_feed_forward"
"""The attribute of a transformers layer that says how many positions its feed forward takes at a time."""


@contextmanager
def unchunked(model: nn.Module) -> Iterator[None]:
    """Let every feed forward take all positions at once; afterwards it is as it was.

    In chunks a tensor has no longer the batch's positions, and cannot be traced for any length.
    """
    chunks = {
        module: vars(module)[CHUNKED]
        for module in model.modules()
        if isinstance(vars(module).get(CHUNKED), int)
    }
    for module in chunks:
        setattr(module, CHUNKED, 0)
    try:
        yield
    finally:
        for module, size in chunks.items():
            setattr(module, CHUNKED, size)
