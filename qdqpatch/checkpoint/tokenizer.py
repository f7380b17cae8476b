"""Carry a checkpoint's tokenizer along, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers.utils import cached_file

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def copy_tokenizer(source: str, out: Path) -> None:
    """Copy the tokenizer files that are there.

    Args:
        source: A folder, or a model's name on the hub.
        out: The folder to copy to.
    """
    for name in TOKENIZER_FILES:
        file = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if file is not None:
            shutil.copyfile(file, out / name)
