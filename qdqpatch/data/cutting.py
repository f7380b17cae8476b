"""Cut texts that are much longer than a sequence before they are tokenized, to the same tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

LETTERS = 32
"""So many characters for each token of a sequence are more than enough, but for rare texts."""

SPARE = 16
"""So many more tokens than a sequence has are needed, for the last ones can differ where the text was cut."""

_BLANK = re.compile(r"\s")
_NEAR = 1000
"""So far behind the place to cut a blank is looked for; words are longer in few languages."""


def beginnings(texts: Iterable[str], tokenizer: Any, max_length: int) -> list[str]:
    """Return texts that give the same tokens once they are cut at `max_length`; long ones are shorter now.

    A tokenizer makes tokens of all of a text, 3 seconds for a megabyte, before it cuts them.

    Args:
        texts: The texts.
        tokenizer: Makes tokens from left to right.
        max_length: Where sequences are cut, in tokens.
    """
    return [_beginning(text, tokenizer, max_length) for text in texts]


def _beginning(text: str, tokenizer: Any, max_length: int) -> str:
    size = LETTERS * max_length
    while 2 * size < len(text):
        blank = _BLANK.search(text, size, size + _NEAR)
        part = text[: blank.start() if blank else size]
        if len(tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]) >= max_length + SPARE:
            return part
        size *= 2
    return text
