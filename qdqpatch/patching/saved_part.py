"""Say that a part of a model was quantized alone where the model is saved: its recipe would be lost."""

from __future__ import annotations

import inspect
import warnings

from torch import nn
from transformers import PreTrainedModel

from qdqpatch.errors import CheckpointWarning

SAVING = inspect.unwrap(PreTrainedModel.save_pretrained).__code__


def warn_of_part(part: nn.Module, prefix: str, keep_vars: bool) -> None:
    """Warn if a larger model that `part` is in is being saved; a hook of `register_state_dict_pre_hook`.

    transformers asks the model that it saves for its recipe, and none of the modules in it.

    Args:
        part: What was quantized by a call of its own.
        prefix: Where it is in the module whose state dict is asked for, with a dot at the end.
        keep_vars: Does not matter here.
    """
    if prefix and (whole := _saved()) is not None:
        warnings.warn(
            f"Of this {type(whole).__name__} the part {prefix.removesuffix('.')} alone was quantized, of "
            "which its config.json says nothing: from_pretrained will give a float model. To have it back as "
            "it is, quantize the whole, then calibrate and save that.",
            CheckpointWarning,
            stacklevel=2,
        )


def _saved() -> PreTrainedModel | None:
    """Return the model whose `save_pretrained` is running; None if it is another one who asks.

    torch does not tell a hook who asks for the state dict, and of a module of the user's own nothing is lost.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is SAVING:
            whole: PreTrainedModel = frame.f_locals["self"]
            return whole
        frame = frame.f_back
    return None
