"""Write the original QDQBERT's own export: random weights, ranges from one batch, torch's exporter.

    REFERENCE_PYTHON benchmarks/original_qdqbert.py OUT.onnx LAYERS

Runs in the environment of `tests/reference/requirements.txt` (transformers 4.40, pytorch-quantization), which
has the classes, with `onnx` added; `benchmarks/tensorrt_rtx.py` calls it there.
"""

from __future__ import annotations

import sys

import torch
from pytorch_quantization import nn as quant_nn
from pytorch_quantization.nn import QuantLinear
from pytorch_quantization.tensor_quant import QuantDescriptor
from transformers import QDQBertConfig, QDQBertModel


def main(out: str, layers: int) -> None:
    """Build, calibrate by maximum as NVIDIA's example does, and export."""
    QuantLinear.set_default_quant_desc_input(QuantDescriptor(num_bits=8, calib_method="max"))
    QuantLinear.set_default_quant_desc_weight(QuantDescriptor(num_bits=8, axis=(0,)))
    torch.manual_seed(0)
    model = QDQBertModel(QDQBertConfig(num_hidden_layers=layers), add_pooling_layer=False).eval()
    ids = torch.randint(5, 1000, (2, 16))
    batch = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    quantizers = [module for module in model.modules() if isinstance(module, quant_nn.TensorQuantizer)]
    for quantizer in quantizers:
        quantizer.disable_quant()
        quantizer.enable_calib()
    with torch.no_grad():
        model(*batch)
    for quantizer in quantizers:
        quantizer.load_calib_amax()
        quantizer.disable_calib()
        quantizer.enable_quant()
    quant_nn.TensorQuantizer.use_fb_fake_quant = True
    names = ("input_ids", "attention_mask", "token_type_ids")
    torch.onnx.export(
        model,
        batch,
        out,
        input_names=list(names),
        output_names=["last_hidden_state"],
        dynamic_axes={name: {0: "batch", 1: "sequence"} for name in names},
        opset_version=13,
        dynamo=False,
        do_constant_folding=True,
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
