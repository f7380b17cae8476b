"""How long sequences are, and how long those may be that the model serves."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qdqpatch.spelling import spelled

if TYPE_CHECKING:  # what runs exported files knows configs alone
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def shortness(lengths: Sequence[int], cut: int, served: int) -> str | None:
    """Say that texts are short, if 99 of 100 have less than half of what the model may serve.

    Activations of long sequences have other ranges: attention spreads over more tokens, for one.

    Args:
        lengths: The number of tokens of each.
        cut: Where they were cut.
        served: The longest sequence that the model may serve; `sys.maxsize` if that is not known.

    Returns:
        The message, or None if they are long enough.
    """
    longest = sorted(lengths)[math.ceil(0.99 * len(lengths)) - 1]
    if served == sys.maxsize or longest >= served / 2:
        return None
    how = f"are cut at {cut}" if longest == cut else f"have at most {longest}"
    return (
        f"The model takes sequences of up to {served} tokens, and those to calibrate with {how} (median "
        f"{statistics.median_low(lengths)}). If longer ones will be served, calibrate with such; the longest "
        f"served, given as {spelled('max_length')}, ends this warning."
    )


def served_length(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None) -> int:
    """Return the longest sequence that tokenizer and model take; `sys.maxsize` if neither says."""
    from qdqpatch.patching.arguments import position_limit

    return min(tokenizer.model_max_length, position_limit(model))


AFTER_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "layoutlmv3",
        "lilt",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
"""Model types whose first position is the one after padding's: of 514 positions, 512 are for tokens."""


def config_limit(config: PreTrainedConfig) -> int:
    """Return the longest sequence for which a config has positions; `sys.maxsize` if it does not say."""
    return positions_for_tokens(config.to_dict()) or sys.maxsize


def positions_for_tokens(config: Mapping[str, Any]) -> int | None:
    """Return the same for a config as it is in `config.json`; None if it does not say."""
    if isinstance(config.get("text_config"), Mapping):  # of a model of texts and images
        return positions_for_tokens(config["text_config"])
    limit = config.get("max_position_embeddings")
    if not isinstance(limit, int):
        return None
    padding = config.get("pad_token_id")
    if config.get("model_type") in AFTER_PADDING and isinstance(padding, int):
        return limit - padding - 1
    return limit
