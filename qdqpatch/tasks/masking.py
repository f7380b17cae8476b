"""The masked words that BERT is trained to fill in (Devlin et al., 2019, appendix A.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qdqpatch.tasks.base import IGNORED

SHARE = 0.15
"""How many of a text's tokens the model has to tell, at least one."""
MASKED, REPLACED = 0.8, 0.1
"""How many of those are masked, and how many are replaced by a random one; the others stay as they are."""


def mask_tokens(
    tokens: Sequence[int], special: Sequence[int], mask: int, vocabulary: int, seed: int
) -> tuple[list[int], list[int]]:
    """Mask some tokens of a text, as its seed and its own tokens determine and nothing else does.

    transformers' `DataCollatorForLanguageModeling` does not serve here. What it draws depends on the texts
    before, and a short text may get no mask at all: a batch of such has a loss of NaN.

    Args:
        tokens: The text.
        special: 1 for each token that may not be masked, else 0.
        mask: The mask token.
        vocabulary: Random tokens are below this.
        seed: At least 0.

    Returns:
        The tokens with masks, and for each the token that the model has to tell; `IGNORED` for the others.
    """
    generator = np.random.default_rng([seed, *tokens])
    places = np.flatnonzero(np.asarray(special) == 0)
    count = min(len(places), max(1, round(SHARE * len(places))))
    given, wanted = list(tokens), [IGNORED] * len(tokens)
    for place in generator.choice(places, count, replace=False) if count else ():
        wanted[place] = tokens[place]
        chance, other = generator.random(), int(generator.integers(vocabulary))
        if chance < MASKED:
            given[place] = mask
        elif chance < MASKED + REPLACED:
            given[place] = other
    return given, wanted
