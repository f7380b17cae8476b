"""A tiny folder of sentence-transformers, as it lies on a hub."""

import json
from pathlib import Path
from typing import Any

import checkpoints
import models
import torch
from safetensors.torch import save_file

NAMES = {"Transformer": "base.modules.transformer", "Dense": "base.modules.dense"}
SIZE = models.CONFIG["hidden_size"]
DENSE = 10
POOLING = {"embedding_dimension": SIZE, "pooling_mode": "cls", "include_prompt": True}
TEXTS = ["the cat sat on the mat .", "a dog", "the cats and a dog sat", "on the mat , a cat"]


def write_embedder(
    folder: Path, pooling: dict[str, Any] | None = None, dense: bool = False, **settings: Any
) -> Path:
    """Write a BERT, its tokenizer, pooling by [CLS], maybe a Dense, and Normalize, which has no folder.

    Args:
        folder: Where to.
        pooling: The pooling's settings; None for `POOLING`.
        dense: Whether to write a Dense.
        settings: For `config_sentence_transformers.json`.
    """
    models.build("BertModel").save_pretrained(folder)
    checkpoints.write_tokenizer(folder)
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense else []), "Normalize"]
    listed = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{kind}" if number else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    write(folder / "modules.json", listed)
    write(folder / "1_Pooling/config.json", POOLING if pooling is None else pooling)
    if dense:
        write_dense(folder / "2_Dense")
    write(folder / "sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": False})
    write(
        folder / "config_sentence_transformers.json",
        {"__version__": {"sentence_transformers": "2.0.0"}, **settings},
    )
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A tiny embedder\n", encoding="utf-8")
    return folder


def write_dense(folder: Path) -> None:
    """Write a Dense with random weights."""
    generator = torch.Generator().manual_seed(3)
    activation = "torch.nn.modules.activation.Tanh"
    sizes = {"in_features": SIZE, "out_features": DENSE, "bias": True, "activation_function": activation}
    write(folder / "config.json", sizes)
    weights = {
        "linear.weight": torch.randn(DENSE, SIZE, generator=generator) / 5,
        "linear.bias": torch.randn(DENSE, generator=generator),
    }
    save_file(weights, folder / "model.safetensors")


def write(file: Path, data: Any) -> None:
    """Write JSON, and the folder that it is in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data), encoding="utf-8")
