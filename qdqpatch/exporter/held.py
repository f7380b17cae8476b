"""What `export` is given: a transformers model, or one of sentence-transformers around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from qdqpatch.output.temporary import temporary_folder
from qdqpatch.patching.wrapped import unwrapped


@contextmanager
def held(
    model: Any, source: str | Path | None, tokenizer: Any
) -> Iterator[tuple[PreTrainedModel, str | Path | None, Any]]:
    """Give the transformers model, the folder with its companion files, and its tokenizer.

    A model of sentence-transformers is saved to a temporary folder for them, because only so everything that
    was changed in memory counts.

    Args:
        model: What the user passed.
        source: The folder that the user named; None for none.
        tokenizer: The tokenizer that the user passed; None for none.
    """
    inner = unwrapped(model)
    if inner is model or source is not None:
        yield inner, source, tokenizer
        return
    with temporary_folder() as folder:
        model.save_pretrained(str(folder), create_model_card=False)
        yield inner, folder, model.tokenizer if tokenizer is None else tokenizer
