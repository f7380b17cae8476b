"""Whether a model knows the tokens that its tokenizer makes."""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from qdqpatch.spelling import counted


def vocabulary_problem(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, words: int | None = None
) -> str | None:
    """Return what is wrong if a tokenizer has tokens that a model does not know; None if all is well.

    Args:
        tokenizer: The tokenizer.
        config: The model's, which tells how many words it knows.
        words: How many it knows where that is better known.
    """
    known = getattr(config, "vocab_size", None) if words is None else words
    if not isinstance(known, int) or len(tokenizer) <= known:
        return None
    return (
        f"The tokenizer has {counted(len(tokenizer), 'token')} and the model only {known}: they do not "
        "belong together. "
        "Take the tokenizer that the model was trained with."
    )
