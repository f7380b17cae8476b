"""A checkpoint's tokenizer: loaded to read texts, and carried along byte for byte."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from qdqpatch.checkpoint.files import find_file
from qdqpatch.errors import CheckpointError, one_line
from qdqpatch.patching.own_code import is_code_trusted

FAST = "tokenizer.json"
"""All of a tokenizer in one file, which servers without transformers read."""

SETTINGS = "tokenizer_config.json"

VOCABULARIES = (FAST, "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
"""Files of which a tokenizer needs one to know any word."""

TOKENIZER_FILES = (
    *VOCABULARIES,
    SETTINGS,
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)

_CLASS = re.compile(r"(\w+)\.\w+")
"""A class of a checkpoint's own and the file that it is in, which lies beside the others."""


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
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=is_code_trusted()
        )
        tokenizer("a")  # one that lacks what every text needs is found now
    except Exception as error:  # a damaged file of a vocabulary raises whatever its reader does
        raise CheckpointError(f"Cannot load the tokenizer of {source}: {one_line(error)}") from error
    return tokenizer


def copy_tokenizer(source: str, out: Path) -> None:
    """Copy the tokenizer files that are there.

    Args:
        source: A folder, or a model's name on the hub.
        out: The folder to copy to.
    """
    for name in (*TOKENIZER_FILES, *_code_files(source)):
        file = find_file(source, name)
        if file is not None:
            shutil.copyfile(file, out / name)


def _code_files(source: str) -> list[str]:
    """Return the names of the files with the tokenizer's own code, which its settings name."""
    file = find_file(source, SETTINGS)
    try:
        named = json.loads(Path(file).read_text(encoding="utf-8"))["auto_map"] if file else None
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return []
    classes = named.get("AutoTokenizer") if isinstance(named, dict) else named
    found = (_CLASS.fullmatch(str(one)) for one in (classes if isinstance(classes, list) else [classes]))
    return list(dict.fromkeys(f"{one[1]}.py" for one in found if one is not None))


def complete_tokenizer(tokenizer: PreTrainedTokenizerBase, out: Path, longest: int) -> None:
    """Write what servers without transformers read of a tokenizer, where a folder does not have it.

    They read `tokenizer.json` alone, and `tokenizer_config.json` for the token that is padding and for where
    texts are cut, which FastEmbed insists on.

    Args:
        tokenizer: The tokenizer.
        out: The folder, which has the other files of the tokenizer.
        longest: The longest sequence that the model takes; `sys.maxsize` if that is not known.
    """
    if tokenizer.is_fast and not (out / FAST).exists():
        fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        fast.no_padding()  # what the last call set
        fast.no_truncation()
        fast.save(str(out / FAST))
    file = out / SETTINGS
    if not file.exists():
        return
    settings = before = json.loads(file.read_text(encoding="utf-8"))
    length = settings.get("model_max_length")
    if not (isinstance(length, int) and 0 < length < sys.maxsize) and longest < sys.maxsize:
        settings = settings | {"model_max_length": longest}
    if settings.get("pad_token") is None and tokenizer.pad_token is not None:
        settings = settings | {"pad_token": tokenizer.pad_token}
    if settings != before:
        file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
