"""Operators that torch.onnx takes for something else."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from qdqpatch.exporter.translations import TABLE
from qdqpatch.patching.quiet import quiet_export


class Means(nn.Module):
    """The mean of the values with each index, as TAPAS has it of the tokens of a cell."""

    def __init__(self, include_self: bool) -> None:
        super().__init__()
        self.include_self = include_self

    def forward(self, start: Tensor, index: Tensor, values: Tensor) -> Tensor:
        return start.scatter_reduce(0, index, values, "mean", include_self=self.include_self)


@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize("first", [0.0, float("inf")])
def test_means_are_means(include_self: bool, first: float) -> None:
    inputs = (torch.tensor([first, 1, 2, 3]), torch.tensor([2, 0, 2, 2, 3]), torch.tensor([1.0, 5, 2, 6, 4]))
    module = Means(include_self).eval()
    with quiet_export():
        program = torch.onnx.export(
            module, inputs, dynamo=True, opset_version=20, verbose=False, custom_translation_table=TABLE
        )
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
    np.testing.assert_allclose(found, module(*inputs).numpy(), rtol=1e-6)
