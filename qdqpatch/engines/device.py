"""Where the commands run models in torch."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def fastest_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_fastest_device(model: Model) -> Model:
    """Move a model to the GPU if there is one, in place, and return it."""
    if (device := fastest_device()).type != "cpu":
        nn.Module.to(model, device)
    return model
