"""Texts that are far longer than a sequence."""

from typing import Any

import pytest
import tiny_tasks

from qdqpatch.data.batches import TextBatches
from qdqpatch.data.cutting import LETTERS, SPARE, beginnings

LENGTH = 12
TEXTS = {
    "words": "the cat sat on the mat . " * 4000,
    "one word": "c" * 100_000 + " the cat sat",
    "no blanks": "the,cat." * 12_500,
    "blanks first": " " * 50_000 + "the cat sat " * 5000,
    "long words": ("x" * 900 + " ") * 100,
}


class Counting:
    """A tokenizer that counts the characters that it reads."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, text: str, **options: Any) -> Any:
        self.seen += len(text)
        return tiny_tasks.tokenizer()(text, **options)


def tokens(text: str) -> list[int]:
    return tiny_tasks.tokenizer()(text, truncation=True, max_length=LENGTH)["input_ids"]


@pytest.mark.parametrize("name", TEXTS)
def test_the_tokens_are_those_of_the_whole_text(name: str) -> None:
    text = TEXTS[name]
    (part,) = beginnings([text], tiny_tasks.tokenizer(), LENGTH)
    assert text.startswith(part)
    assert tokens(part) == tokens(text)


def test_little_of_a_long_text_is_tokenized() -> None:
    counting, text = Counting(), TEXTS["words"]
    (part,) = beginnings([text], counting, LENGTH)
    assert counting.seen == len(part) < 2 * LETTERS * (LENGTH + SPARE)
    short = "the cat " * 5
    assert beginnings([short], counting, LENGTH) == [short]
    assert counting.seen == len(part)


def test_batches_of_long_texts_and_pairs() -> None:
    tokenizer, text = tiny_tasks.tokenizer(), TEXTS["words"]
    for rows, whole in (([(text, None)], (text,)), ([("a dog", text)], ("a dog", text))):
        (batch,) = TextBatches(rows, tokenizer, max_length=LENGTH)
        expected = tokenizer(*whole, truncation=True, max_length=LENGTH)["input_ids"]
        assert batch["input_ids"].tolist() == [expected]
        assert len(expected) == LENGTH
