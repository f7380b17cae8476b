"""What the outputs of a head mean: the one place that loss, cost, metric and check of every task go by.

| meaning | an output is | how far apart two are | what is predicted |
|---|---|---|---|
| classes | one distribution over classes or words | Kullback-Leibler divergence | the likeliest one |
| labels | a yes or no for every label | the same of every label, summed | which ones are likely |
| scores | numbers | mean squared difference | the number, and so an order |
| positions | one distribution over tokens | Kullback-Leibler divergence | the likeliest one |
| states | a vector | 1 - cosine | the vector |
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the usual name
from transformers import PreTrainedConfig, PreTrainedModel

from qdqpatch.errors import ConfigError

Meaning = Literal["classes", "labels", "scores", "positions", "states"]

Problem = Literal["regression", "single_label_classification", "multi_label_classification"]
"""What `problem_type` in config.json can be."""

MEASURES: dict[Meaning, str] = {
    "classes": "KL divergence",
    "labels": "KL divergence",
    "scores": "squared difference",
    "positions": "KL divergence",
    "states": "1 - cosine",
}
"""What `divergence` is called."""

SMOOTHED: tuple[Meaning, ...] = ("classes", "labels")
"""Outputs of which a teacher is nearly sure, where there is one for a text and not for each token."""

_OUTPUTS: dict[str, Meaning] = {
    "logits": "classes",
    "prediction_logits": "classes",
    "seq_relationship_logits": "classes",
    "start_logits": "positions",
    "end_logits": "positions",
    "last_hidden_state": "states",
}

_CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification")


def problem_of(config: PreTrainedConfig) -> Problem:
    """Return what a classifier of texts solves: its config's `problem_type`, or what transformers takes.

    A single logit is a number whatever `problem_type` says but `multi_label_classification`: a softmax of it
    is always 1.

    Raises:
        ConfigError: If `problem_type` is none that transformers has.
    """
    named = getattr(config, "problem_type", None)
    if named is not None and named not in get_args(Problem):
        raise ConfigError(
            f"problem_type in config.json is {named!r}; it can be {', '.join(get_args(Problem))}."
        )
    if named == "multi_label_classification":
        return "multi_label_classification"
    if named == "regression" or config.num_labels == 1:
        return "regression"
    return "single_label_classification"


def classifier_of(model: PreTrainedModel) -> PreTrainedConfig | None:
    """Return the config that `meaning_of` needs: that of a classifier of texts or images; None for others."""
    return model.config if type(model).__name__.endswith(_CLASSIFIERS) else None


def is_known(output: str) -> bool:
    """Tell whether an output of that name has a meaning."""
    return output in _OUTPUTS


def meaning_of(output: str, outcomes: int, classifier: PreTrainedConfig | None = None) -> Meaning:
    """Return what an output of a head means.

    Args:
        output: Its name; one of those that `is_known` knows.
        outcomes: The size of its last dimension.
        classifier: The config of the model if it classifies texts or images; None if not.
    """
    if output == "logits" and classifier is not None:
        problem = problem_of(classifier)
        if problem != "single_label_classification":
            return "labels" if problem == "multi_label_classification" else "scores"
    meaning = _OUTPUTS[output]
    return "scores" if meaning == "classes" and outcomes == 1 else meaning


def divergence(meaning: Meaning, expected: Tensor, actual: Tensor, temperature: float = 1.0) -> Tensor:
    """Return how far each row of an output is from what was expected; 0 only where they say the same.

    Of distributions it is KL(expected || actual) in nats, times the square of the temperature that divides
    the logits of both (Hinton, arXiv 1503.02531). The temperature means nothing for numbers and vectors.

    Args:
        meaning: What the output means.
        expected: Of the teacher or the float model, shape `(rows, outcomes)`; -inf for outcomes that cannot
            be.
        actual: Of the model that is judged, of the same shape, with -inf in the same places.
        temperature: Of distributions.

    Returns:
        Shape `(rows,)`, in the floating-point type of the arguments.
    """
    if meaning == "scores":
        return (actual - expected).square().mean(-1)
    if meaning == "states":
        return 1 - F.cosine_similarity(expected, actual, dim=-1)
    expected, actual = expected / temperature, actual / temperature
    if meaning == "labels":
        p = expected.sigmoid()
        both = p * (F.logsigmoid(expected) - F.logsigmoid(actual))
        both = both + (1 - p) * (F.logsigmoid(-expected) - F.logsigmoid(-actual))
        return both.sum(-1) * temperature**2
    log_p, log_q = expected.log_softmax(-1), actual.log_softmax(-1)
    possible = log_p.isfinite()
    log_p, log_q = log_p.masked_fill(~possible, 0), log_q.masked_fill(~possible, 0)
    terms = F.kl_div(log_q, log_p, reduction="none", log_target=True)
    return torch.where(possible, terms, 0).sum(-1) * temperature**2


def predictions(meaning: Meaning, rows: Tensor) -> Tensor | None:
    """Return what the rows of an output predict, so that it can be said how many predictions changed.

    Args:
        meaning: What the output means.
        rows: Shape `(rows, outcomes)`.

    Returns:
        The likeliest class or position, shape `(rows,)`; for labels whether each is likely, shape
        `(rows, labels)`; None for numbers and vectors, which are near or far, not right or wrong.
    """
    if meaning in ("classes", "positions"):
        return rows.argmax(-1)
    return (rows > 0).long() if meaning == "labels" else None


def orders(rows: Tensor) -> Tensor:
    """Return which of two rows has the higher score, for all pairs of rows: 1, 0 or -1.

    Args:
        rows: Shape `(rows, scores)`.

    Returns:
        Shape `(pairs, scores)`.
    """
    first, second = torch.triu_indices(len(rows), len(rows), offset=1)
    return (rows[first] - rows[second]).sign().long()


def checked_pair(student: Tensor, teacher: Tensor | None, output: str) -> tuple[Tensor, Tensor]:
    """Return the same output of student and teacher in fp32; raise a `ConfigError` if their shapes differ."""
    if teacher is None or student.shape != teacher.shape:
        shape = "nothing" if teacher is None else f"shape {tuple(teacher.shape)}"
        raise ConfigError(
            f"The student gives {output} of shape {tuple(student.shape)} and the teacher {shape}: both need "
            "the same head with as many labels."
        )
    return student.float(), teacher.float()
