"""Which positions of a batch are data, and which only pad a row to the batch's length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qdqpatch.nn.names import operand

MASKS = ("attention_mask", "encoder_attention_mask", "decoder_attention_mask")
"""Arguments of transformers models that are 1 at data and 0 at padding, shape `(batch, positions)`."""

POSITIONS: dict[str, tuple[int, int] | None] = {
    **dict.fromkeys(
        map(operand, ("q", "v", "a", "c2p_q", "p2c_k", "layout_q", "layout_v", "layout_a")), (0, 2)
    ),
    **dict.fromkeys(map(operand, ("k", "layout_k")), (0, 3)),
    # What relative positions are embedded as, and windows of tokens, have no row of the batch.
    **dict.fromkeys(map(operand, ("c2p_k", "p2c_q", "conv_span", "conv_kernel"))),
}
"""The dimensions of an attention operand that are row and position, None if it has none; `(0, 1)` for every
other tensor. Where an attention multiplies in three dimensions, heads are in the rows."""

PROBABILITIES = (operand("a"), operand("layout_a"))
"""The operands whose last dimension too counts positions; they are 0 at the hidden ones."""


class Padding:
    """Tells data from padding in the tensors that one batch leads to.

    The masks are read on the host, once a batch. A tensor belongs to the mask whose rows and positions it
    has; one that fits none, such as a pooled output, is data altogether.

    Args:
        batch: Keyword arguments for the model.
    """

    def __init__(self, batch: Mapping[str, Any]) -> None:
        self._masks: dict[tuple[int, int], Tensor] = {}
        self._rows: dict[tuple[int, int, bool], Tensor | None] = {}
        for name in MASKS:
            mask = batch.get(name)
            if not isinstance(mask, Tensor) or not _is_by_position(mask, batch):
                continue
            mask = mask.reshape(-1, mask.shape[-1]).cpu().bool()
            other = self._masks.get((mask.shape[0], mask.shape[1]))
            # Two masks of one shape, as of an encoder and its decoder: what either shows is data.
            self._masks[mask.shape[0], mask.shape[1]] = mask if other is None else mask | other

    def data(self, tensor: Tensor, name: str) -> tuple[Tensor, Tensor | int]:
        """Return the part of a tensor that is data.

        Args:
            tensor: What a quantizer sees.
            name: The quantizer's name, which tells how attention's operands are laid out.

        Returns:
            The values, in no particular order, and how many of them are zeros that are padding.
        """
        dims = _dims(tensor, name)
        if dims is None:
            return tensor, 0
        batch, positions = tensor.shape[dims[0]], tensor.shape[dims[1]]
        folded = _is_folded(tensor, name)
        hidden = self._hidden_keys(tensor, folded) if name in PROBABILITIES else None
        rows = self._data_rows((batch, positions, folded), tensor.device)
        if rows is not None:
            if dims != (0, 1):
                others = [dim for dim in range(tensor.dim()) if dim not in dims]
                tensor = tensor.permute(*dims, *others)
            tensor = tensor.flatten(0, 1).index_select(0, rows)
        if hidden is None:
            return tensor, 0
        # Where every key of a row is hidden, softmax gives each the same share, not 0.
        shape = (-1, *([1] * (tensor.dim() - 2)), hidden.shape[-1])
        hidden = (hidden if rows is None else hidden[rows // positions]).view(shape)
        return tensor, ((tensor == 0) & hidden).sum()

    def zeroed(self, tensor: Tensor, name: str) -> Tensor:
        """Return the tensor with zeros in the place of padding."""
        dims = _dims(tensor, name)
        mask = (
            None
            if dims is None
            else self._mask(tensor.shape[dims[0]], tensor.shape[dims[1]], _is_folded(tensor, name))
        )
        if dims is None or mask is None:
            return tensor
        shape = [size if dim in dims else 1 for dim, size in enumerate(tensor.shape)]
        return torch.where(mask.view(shape).to(tensor.device), tensor, 0)

    def _mask(self, rows: int, positions: int, folded: bool) -> Tensor | None:
        """Return what is data, shape `(rows, positions)`; None if no mask fits. Heads may be in the rows."""
        for (batch, length), mask in self._masks.items():
            if length == positions and (rows == batch or (folded and rows % batch == 0)):
                return mask.repeat_interleave(rows // batch, dim=0)
        return None

    def _hidden_keys(self, probabilities: Tensor, folded: bool) -> Tensor | None:
        """Return which keys are padding, shape `(batch, keys)`; None if none is."""
        mask = self._mask(probabilities.shape[0], probabilities.shape[-1], folded)
        return None if mask is None or bool(mask.all()) else (~mask).to(probabilities.device)

    def _data_rows(self, shape: tuple[int, int, bool], device: torch.device) -> Tensor | None:
        """Return the flat indices of the positions that are data; None if all are."""
        if shape not in self._rows:
            mask = self._mask(*shape)
            full = mask is None or bool(mask.all())
            rows = None if mask is None or full else mask.flatten().nonzero().flatten()
            self._rows[shape] = None if rows is None else rows.to(device, non_blocking=True)
        return self._rows[shape]


def _dims(tensor: Tensor, name: str) -> tuple[int, int] | None:
    """Return the dimensions of row and position; None if the tensor has no positions."""
    dims = POSITIONS.get(name, (0, 1))
    if dims is None:
        return None
    if _is_folded(tensor, name):
        return dims[0], dims[1] - 1
    return dims if tensor.dim() > max(2, *dims) else None


def _is_folded(tensor: Tensor, name: str) -> bool:
    """Whether a tensor is an attention operand with the heads in its rows."""
    return POSITIONS.get(name) is not None and tensor.dim() == 3


def _is_by_position(mask: Tensor, batch: Mapping[str, Any]) -> bool:
    """Whether a mask is one of positions: a mask of queries by keys says nothing about a position as such."""
    if mask.dim() == 2:
        return True
    # A multiple-choice model takes (batch, choices, positions) as (batch * choices, positions).
    given = (batch.get(name) for name in ("input_ids", "inputs_embeds"))  # either can be None, for the other
    return mask.dim() == 3 and any(isinstance(one, Tensor) and one.shape[:3] == mask.shape for one in given)
