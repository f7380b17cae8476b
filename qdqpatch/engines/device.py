"""Where the commands run models in torch."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def to_fastest_device(model: Model) -> Model:
    """Move a model to the GPU if there is one, in place, and return it."""
    if torch.cuda.is_available():
        nn.Module.to(model, "cuda")
    return model
