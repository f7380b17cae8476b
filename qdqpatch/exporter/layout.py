"""Where an export's files lie, so that servers find them without being told."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qdqpatch.checkpoint.companions import LENGTHS, MODULES, PROMPTS, Companions
from qdqpatch.checkpoint.tokenizer import VOCABULARIES, complete_tokenizer
from qdqpatch.data.lengths import served_length
from qdqpatch.engines.homes import IR_FOLDER, ONNX_FOLDER
from qdqpatch.exporter.targets.base import ONNX_FILE
from qdqpatch.exporter.tracing import SENTENCE
from qdqpatch.patching.arguments import run

QUANTIZED = "model_quantized.onnx"
"""The name under which FastEmbed and transformers.js look for int8."""

EXPORT_JSON = "export.json"
"""What `transformers.exporters.ExportedModel` reads."""

FORMATS = {ONNX_FOLDER: "onnx", IR_FOLDER: "openvino"}
"""What it calls the files of a folder."""

MODULE = "qdqpatch.engines.sentence_transformers.Transformer"
"""What runs an exported file in sentence-transformers."""

CLASSIFIER = "ForSequenceClassification"
"""How the classes of models end that sentence-transformers calls cross-encoders."""


def write_beside(
    model: PreTrainedModel, folder: Path, companions: Companions | None, tokenizer: Any, runs: bool = True
) -> None:
    """Write config, tokenizer and companion files to a folder; what is there stays.

    Args:
        model: The model.
        folder: Where to.
        companions: The companion files; None for none.
        tokenizer: The tokenizer; None for none.
        runs: Whether sentence-transformers shall run the exported file, by way of our module.
    """
    if not (folder / "config.json").exists():
        model.config.save_pretrained(folder)
    if companions is not None:
        companions.copy(folder)
    if tokenizer is not None and not _has_tokenizer(folder):
        tokenizer.save_pretrained(folder)
    if tokenizer is not None:
        cut = None if companions is None else companions.max_length
        complete_tokenizer(tokenizer, folder, min(cut or sys.maxsize, served_length(tokenizer, model)))
    if runs:
        _name_our_module(model, folder)


def _name_our_module(model: PreTrainedModel, folder: Path) -> None:
    """Let sentence-transformers run the exported file, of an embedder or of what scores pairs of texts.

    The second has no `modules.json` of old, and without one sentence-transformers looks for torch's weights.
    """
    listed = _read(folder / MODULES)
    if listed:
        listed[0]["type"] = MODULE
        _write(folder / MODULES, listed)
    elif type(model).__name__.endswith(CLASSIFIER) and _has_tokenizer(folder):
        _write(folder / MODULES, [{"idx": 0, "name": "0", "path": "", "type": MODULE}])
        settings = next((folder / name for name in LENGTHS if (folder / name).exists()), folder / LENGTHS[0])
        _write(settings, {**(_read(settings) or {}), "transformer_task": "sequence-classification"})
        kind = {"model_type": "CrossEncoder", **(_read(folder / PROMPTS) or {})}
        _write(folder / PROMPTS, kind)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in VOCABULARIES)


def _read(file: Path) -> Any:
    """Return what is in a JSON file; None where there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _write(file: Path, data: Any) -> None:
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def link_quantized(file: Path) -> None:
    """Give an ONNX file the name that some servers look for."""
    if file.name == ONNX_FILE:
        link(file, file.with_name(QUANTIZED))


def link(file: Path, second: Path) -> None:
    """Give a file a second name: a hard link, or a copy where the file system has none."""
    try:
        os.link(file, second)
    except OSError:
        shutil.copyfile(file, second)


def size_of(file: Path) -> int:
    """Return the bytes of a model's files, without its second name."""
    stem = file.name.partition(".")[0]
    return sum(part.stat().st_size for part in file.parent.glob(f"{stem}.*"))


def write_export_json(
    model: PreTrainedModel, folder: Path, file: str, inputs: Mapping[str, Tensor], outputs: list[str]
) -> None:
    """Describe a file for `ExportedModel.from_pretrained`, where this version of transformers has it.

    Args:
        model: The model.
        folder: Where to.
        file: The file, by its path in the folder.
        inputs: A batch that it was traced with.
        outputs: The names of what it gives, in order.
    """
    is_known = importlib.util.find_spec("transformers.exporters") is not None
    if not is_known or (folder / EXPORT_JSON).exists():
        return
    from transformers.exporters.metadata import ExportMetadata

    metadata = ExportMetadata(
        architecture=type(model).__name__,
        export_dtype="float32",
        export_device="cpu",
        kwargs={
            name: {
                "rank": tensor.dim(),
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
            }
            for name, tensor in inputs.items()
        },
        out_spec=_structure(model, inputs, outputs),
    )
    entry = {"file": file, "metadata": dataclasses.asdict(metadata)}
    kind = FORMATS[file.partition("/")[0]]
    data = {"schema_version": 1, "export_format": kind, "components": {"model": entry}}
    _write(folder / EXPORT_JSON, data)
    if kind == "onnx":  # it asks for the file with the weights even where the weights are inside
        folder.joinpath(f"{file}.data").touch()


def _structure(model: PreTrainedModel, inputs: Mapping[str, Tensor], outputs: list[str]) -> str:
    """Return what a file's tensors are put into: an output of transformers, as `pytree` writes it.

    None of those has a field `sentence_embedding`; CLIP's for texts calls it `text_embeds`.
    """
    from torch.utils import _pytree
    from transformers.models.clip.modeling_clip import CLIPTextModelOutput

    if SENTENCE in outputs:
        names = ["text_embeds" if name == SENTENCE else name for name in outputs]
        leaves = [_pytree.tree_structure(0) for _ in names]
        return _pytree.treespec_dumps(_pytree.TreeSpec(CLIPTextModelOutput, names, leaves))
    with torch.no_grad():
        result = run(model, inputs)
    fields = {name.partition(".")[0] for name in outputs}
    kept = type(result)(**{name: value for name, value in result.items() if name in fields})
    return _pytree.treespec_dumps(_pytree.tree_structure(kept))
