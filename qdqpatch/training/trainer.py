"""DistillationTrainer: transformers' Trainer with the float model as the teacher."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer

from qdqpatch.errors import ConfigError
from qdqpatch.nn.attention import additive
from qdqpatch.nn.pooling import SentenceHead
from qdqpatch.patching.apply import is_quantized
from qdqpatch.patching.arguments import by_name
from qdqpatch.patching.quantize import dequantize
from qdqpatch.tasks.head import classifier_of
from qdqpatch.training.distillation import Distillation, distillation_loss
from qdqpatch.training.ranges import parameter_groups


class DistillationTrainer(Trainer):
    """Trains a quantized model to give what its float model gives; no labels are needed.

    For sequence and token classification, multiple choice, question answering, masked language modelling,
    and for headless models, whose texts' embeddings it brings together. Learned ranges (`train_ranges`) get
    a learning rate of their own and do not decay.

    Args:
        model: The student: a calibrated model.
        *args: As transformers' `Trainer` takes them.
        teacher: The float model, of the same head; it is put into eval mode and on the student's device, and
            is not saved. None takes a copy of the student's weights as they are now, without quantizers.
        distillation: The parts of the loss; None for the logits alone.
        range_lr: The learning rate of learned ranges; None for 127 times `args.learning_rate`.
        head: What makes embeddings of a headless model's last hidden states; None for their mean. It is not
            trained.
        **kwargs: As transformers' `Trainer` takes them.

    Raises:
        ConfigError: If the teacher is quantized, has another head than the student, or there is nothing to
            learn from it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *args: Any,
        teacher: PreTrainedModel | None = None,
        distillation: Distillation | None = None,
        range_lr: float | None = None,
        head: SentenceHead | None = None,
        **kwargs: Any,
    ) -> None:
        parts = Distillation() if distillation is None else distillation
        if not parts.needs_teacher:
            if teacher is not None:
                raise ConfigError(
                    "The loss has no part for the teacher: give logits, hidden_states or attentions a "
                    "weight, or pass no teacher."
                )
        elif teacher is None:
            teacher = dequantize(copy.deepcopy(model))
        elif is_quantized(teacher):
            raise ConfigError("The teacher is quantized: pass the float model.")
        elif type(teacher).__name__.removeprefix("QDQ") != type(model).__name__:
            raise ConfigError(
                f"The teacher is a {type(teacher).__name__} and the student a {type(model).__name__}: both "
                "need the same head."
            )
        if teacher is not None and parts.attentions and teacher.config._attn_implementation != "eager":
            teacher = copy.deepcopy(teacher)
            teacher.set_attn_implementation("eager")  # another one gives no probabilities
        super().__init__(model, *args, **kwargs)
        self.teacher = None if teacher is None else teacher.eval().to(self.args.device)
        self.distillation = parts
        self._classifier = classifier_of(model)
        self.range_lr = range_lr
        self._head = (
            None if head is None else copy.deepcopy(head).float().to(self.args.device).requires_grad_(False)
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch
        self.can_return_loss = True

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch, and the student's outputs if asked for."""
        parts = self.distillation
        needed = {
            "output_hidden_states": bool(parts.hidden_states),
            "output_attentions": bool(parts.attentions),
        }
        labels = ("labels", "start_positions", "end_positions", "next_sentence_label")
        bare = {name: value for name, value in inputs.items() if name not in labels}
        theirs = {}
        if self.teacher is not None:
            with torch.no_grad():
                theirs = self.teacher(**_for_any(bare, self.teacher), **needed, **by_name(self.teacher))
        ours = model(**(inputs if parts.labels else bare), **needed, **by_name(model))
        loss = distillation_loss(ours, theirs, inputs, parts, self._classifier, self._head)
        return (loss, ours) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimizer that the arguments name, with learned ranges in a group of their own."""
        if self.optimizer is None:
            cls, options = self.get_optimizer_cls_and_kwargs(self.args)
            assert self.model is not None  # the constructor asks for one
            groups = parameter_groups(
                self.model, self.args.learning_rate, self.args.weight_decay, self.range_lr
            )
            self.optimizer = cls(groups, **options)
        return self.optimizer


def _for_any(inputs: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Return inputs whose mask of queries by keys, if it is of bool, suits "eager" too, which adds it."""
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        return inputs
    return {**inputs, "attention_mask": additive(mask, model.dtype)}
