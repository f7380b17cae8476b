"""Checkpoints of the original QDQBERT classes: those in the repository, and others made of recorded cases."""

import json
from pathlib import Path
from typing import Any

import reference_cases as reference
import torch
from safetensors.torch import load_file, save_file


def folder_of(original: str) -> Path:
    return reference.FOLDER / "checkpoints" / original


def original_tensors(original: str) -> dict[str, torch.Tensor]:
    folder = folder_of(original)
    if (folder / "model.safetensors").exists():
        return load_file(folder / "model.safetensors")
    return torch.load(folder / "pytorch_model.bin", weights_only=True)


def write(case: reference.Case, folder: Path, **changes: Any) -> Path:
    """Write a case's model as the original would have; it is as good as any checkpoint of that time."""
    config = json.loads(case.metadata["config"])
    config |= {"model_type": "qdqbert", "architectures": [f"QDQ{case.metadata['head']}"]} | changes
    config["id2label"] = {str(index): f"LABEL_{index}" for index in range(config.pop("num_labels"))}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(case.group("state"), folder / "model.safetensors", {"format": "pt"})
    return folder
