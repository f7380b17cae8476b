"""A checkpoint's tokenizer: loaded to read texts, and carried along byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from qdqpatch.checkpoint.files import find_file
from qdqpatch.errors import CheckpointError, one_line

VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
"""Files of which a tokenizer needs one to know any word."""

TOKENIZER_FILES = (
    *VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer.

    Args:
        source: A folder, or a model's name on the hub.

    Raises:
        CheckpointError: If there is none. transformers would make up one that knows no word.
    """
    if not any(find_file(source, name) for name in VOCABULARIES):
        raise CheckpointError(
            f"{source} has no tokenizer, which texts need: none of {', '.join(VOCABULARIES)} is there."
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # a damaged file of a vocabulary raises whatever its reader does
        raise CheckpointError(f"Cannot load the tokenizer of {source}: {one_line(error)}") from error
    return tokenizer


def copy_tokenizer(source: str, out: Path) -> None:
    """Copy the tokenizer files that are there.

    Args:
        source: A folder, or a model's name on the hub.
        out: The folder to copy to.
    """
    for name in TOKENIZER_FILES:
        file = find_file(source, name)
        if file is not None:
            shutil.copyfile(file, out / name)
