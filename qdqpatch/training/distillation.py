"""What a student loses to its teacher, by the outputs that both have.

Distillation from the float model is what NVIDIA trains its int8 BERTs with ("Integer quantization for deep
learning inference", arXiv 2004.09602, and the blog post on quantization-aware training that followed). The
loss on logits is Hinton's (arXiv 1503.02531), those on hidden states and attention are TinyBERT's (arXiv
1909.10351) between layers of equal width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from qdqpatch.errors import ConfigError
from qdqpatch.nn.pooling import Pooling, SentenceHead
from qdqpatch.spelling import spelled
from qdqpatch.tasks.base import IGNORED
from qdqpatch.tasks.head import SMOOTHED, checked_pair, divergence, is_known, meaning_of

SOFT = 4.0
"""The temperature of distributions over a few classes; Hinton found 2.5 to 4 best for small students."""


@dataclass(frozen=True)
class Distillation:
    """The weights of a loss's parts; a part of weight 0 is not computed.

    Attributes:
        logits: The divergence of the student's distribution from the teacher's; for scores, the mean squared
            difference; for a headless model, one minus the cosine of the texts' embeddings.
        hidden_states: The mean squared difference of the states after the embeddings and every layer.
        attentions: The mean squared difference of the attention probabilities of every layer.
        labels: The model's own loss, for which batches need labels.
        temperature: Divides the logits of both; the divergence is multiplied by its square. None for 4 where
            there is one distribution over a few classes, of which a teacher is nearly sure on the texts that
            it learned from, and 1 where there is one for each token or over positions.

    Raises:
        ConfigError: If a weight is negative or no number, all are 0, or the temperature is not positive.
    """

    logits: float = 1.0
    hidden_states: float = 0.0
    attentions: float = 0.0
    labels: float = 0.0
    temperature: float | None = None

    def __post_init__(self) -> None:
        weights = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[:-1]}
        if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
            raise ConfigError(
                "The weights must be numbers of at least 0, and not all of them 0: "
                f"{', '.join(f'{spelled(name)} {weight}' for name, weight in weights.items())}."
            )
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ConfigError(f"{spelled('temperature')} must be a number above 0, not {self.temperature}.")

    @property
    def needs_teacher(self) -> bool:
        """Whether there is a part that compares with a teacher."""
        return self.logits > 0 or self.hidden_states > 0 or self.attentions > 0


def distillation_loss(
    student: Mapping[str, Any],
    teacher: Mapping[str, Any],
    inputs: Mapping[str, Any],
    parts: Distillation,
    classifier: PreTrainedConfig | None = None,
    head: SentenceHead | None = None,
) -> Tensor:
    """Return the loss of a batch, a mean over its examples or tokens: fp32, 0-dim.

    Positions that the attention mask hides count for nothing: of one of queries by keys, what no query sees.
    Where `inputs` has labels for each token, those with the label -100 count for nothing either: for masked
    language modelling the masked ones are left.

    Args:
        student: The student's outputs, with hidden states, attentions and loss if `parts` needs them.
        teacher: The teacher's, for the same batch.
        inputs: The batch: keyword arguments of the model.
        parts: What to add up.
        classifier: The config of a classifier of texts, which says whether its logits are classes, several
            labels or scores (`qdqpatch.tasks.head.classifier_of`); None for another head.
        head: What makes embeddings of a headless model's last hidden states; None for their mean.

    Raises:
        ConfigError: If the outputs lack what a part needs.
    """
    mask = _mask(student, inputs)
    losses = []
    if parts.logits:
        losses.append(
            parts.logits * _of_outputs(student, teacher, inputs, mask, parts.temperature, classifier, head)
        )
    if parts.hidden_states:
        pairs = _pairs(student, teacher, "hidden_states")
        of_layers = [_mean_square(one - other, mask[..., None]) for one, other in pairs]
        losses.append(parts.hidden_states * torch.stack(of_layers).mean())
    if parts.attentions:
        pairs = _pairs(student, teacher, "attentions")
        seen = mask[:, None, :, None] & mask[:, None, None, :]
        of_layers = [_mean_square(one - other, seen) for one, other in pairs]
        losses.append(parts.attentions * torch.stack(of_layers).mean())
    if parts.labels:
        if student.get("loss") is None:
            raise ConfigError("Distillation with labels needs labels in every batch.")
        losses.append(parts.labels * student["loss"])
    return torch.stack(losses).sum()


def _of_outputs(
    student: Mapping[str, Any],
    teacher: Mapping[str, Any],
    inputs: Mapping[str, Any],
    mask: Tensor,
    temperature: float | None,
    classifier: PreTrainedConfig | None,
    head: SentenceHead | None,
) -> Tensor:
    embed = head or SentenceHead(Pooling())
    names = [name for name in student if is_known(name) and student[name] is not None]
    if not names:
        raise ConfigError(f"There is no loss for outputs of the names {', '.join(student)}.")
    losses = []
    for name in names:
        one, other = checked_pair(student[name], teacher.get(name), name)
        means = meaning_of(name, one.shape[-1], classifier)
        by_token = one.dim() == 3 and means != "states"
        if means == "states":
            one, other = embed(one.float(), mask), embed(other.float(), mask)
        if means == "positions":
            hidden = torch.finfo(torch.float32).min / 2
            one, other = one.masked_fill(~mask, hidden), other.masked_fill(~mask, hidden)
        soft = SOFT if means in SMOOTHED and not by_token else 1.0
        found = divergence(means, other, one, temperature or soft)
        if by_token:
            counted = mask
            labels = inputs.get("labels")
            if labels is not None and labels.shape == mask.shape:
                counted = counted & (labels != IGNORED)
            losses.append((found * counted).sum() / counted.sum().clamp_min(1))
        else:
            losses.append(found.mean() / (2 if means == "positions" else 1))  # start and end
    return torch.stack(losses).sum()


def _mean_square(difference: Tensor, counted: Tensor) -> Tensor:
    """Return the mean square where `counted`, which is broadcast, is true."""
    counted = counted.expand_as(difference)
    return (difference.float().square() * counted).sum() / counted.sum().clamp_min(1)


def _pairs(student: Mapping[str, Any], teacher: Mapping[str, Any], name: str) -> list[tuple[Tensor, Tensor]]:
    ours, theirs = student.get(name), teacher.get(name)
    if not ours or not theirs:
        raise ConfigError(f"Distillation of {name} needs outputs with {name} from student and teacher.")
    if len(ours) != len(theirs) or ours[0].shape != theirs[0].shape:
        raise ConfigError(f"Distillation of {name} needs a teacher of as many layers and of the same width.")
    return list(zip(ours, theirs, strict=True))


def _mask(student: Mapping[str, Any], inputs: Mapping[str, Any]) -> Tensor:
    """Return which positions count: bool, shape `(sequences, length)`, or of images one that is broadcast."""
    mask = inputs.get("attention_mask")
    if mask is None and "pixel_values" in inputs:  # of an image all counts, wherever its patches are
        states = student.get("last_hidden_state")
        images, length = len(inputs["pixel_values"]), 1 if states is None else states.shape[1]
        return torch.ones(images, length, dtype=torch.bool, device=inputs["pixel_values"].device)
    if mask is None:
        mask = torch.ones_like(_tokens(inputs))
    if mask.dim() == 4:
        return _seen(mask).expand(len(_tokens(inputs).flatten(0, -2)), -1)
    return mask.reshape(-1, mask.shape[-1]).bool()


def _tokens(inputs: Mapping[str, Any]) -> Tensor:
    """Return one number for each token."""
    ids: Tensor | None = inputs.get("input_ids")
    return inputs["inputs_embeds"][..., 0] if ids is None else ids


def _seen(mask: Tensor) -> Tensor:
    """Return which keys some query sees: bool, `(sequences, keys)`, of a mask of queries by keys.

    Args:
        mask: Shape `(sequences, heads, queries, keys)`; of bool, or what is added to the scores.
    """
    shown = mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask.bool()
    return shown.flatten(1, 2).any(dim=1)
