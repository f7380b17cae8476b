"""A tiny float checkpoint with a tokenizer, as a user would have one."""

import json
from pathlib import Path

import models

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "a", "cat", "dog", "sat", "on", "the", "mat", "and", "##s", ".", ","]
SENTENCES = "The cat sat on the mat.\n\nA dog and the cats\nthe mat\n"


def write_checkpoint(folder: Path) -> Path:
    """Write a BERT with a masked-LM head and its tokenizer into a folder; return the folder."""
    models.build("BertForMaskedLM").save_pretrained(folder)
    return write_tokenizer(folder)


def write_tokenizer(folder: Path) -> Path:
    """Write the tokenizer alone; return the folder."""
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
