"""How NVIDIA's own scripts calibrate a model, and the batches that both are given."""

from typing import Any

import models
import torch
from pytorch_quantization import calib
from pytorch_quantization import nn as quant_nn
from torch import nn


def batches(name: str = "BertModel") -> list[dict[str, torch.Tensor]]:
    return [models.inputs(name, seed) for seed in (11, 12, 13)]


def collect_as_nvidia_does(model: nn.Module, data: list[dict[str, torch.Tensor]]) -> None:
    """The first half of NVIDIA's calibration scripts (pytorch-quantization 2.1.3, examples)."""
    for _, module in model.named_modules():
        if isinstance(module, quant_nn.TensorQuantizer):
            if module._calibrator is not None:
                module.disable_quant()
                module.enable_calib()
            else:
                module.disable()
    with torch.no_grad():
        for batch in data:
            model(**batch)
    for _, module in model.named_modules():
        if isinstance(module, quant_nn.TensorQuantizer):
            if module._calibrator is not None:
                module.enable_quant()
                module.disable_calib()
            else:
                module.enable()


def compute_as_nvidia_does(model: nn.Module, **options: Any) -> None:
    """The second half of NVIDIA's calibration scripts."""
    for _, module in model.named_modules():
        if isinstance(module, quant_nn.TensorQuantizer) and module._calibrator is not None:
            if isinstance(module._calibrator, calib.MaxCalibrator):
                module.load_calib_amax()
            else:
                module.load_calib_amax(**options)
