"""Students of distillation: heads, and models that have something to learn back."""

import models
import torch
from transformers import PreTrainedModel

HEADS = [
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForMultipleChoice",
    "BertForQuestionAnswering",
    "BertForMaskedLM",
    "BertModel",
]


def damaged(name: str) -> PreTrainedModel:
    """Return a calibrated model whose weights are no longer the float model's."""
    model = models.calibrated(name)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model
