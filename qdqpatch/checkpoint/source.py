"""A checkpoint to read: found, identified and checked before its weights are loaded."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from qdqpatch.checkpoint.files import find_file
from qdqpatch.choices import AUTO_CLASSES
from qdqpatch.config.config import QDQConfig
from qdqpatch.errors import CheckpointError, QdqError
from qdqpatch.patching.plan import Plan, find_sites
from qdqpatch.patching.stored_ranges import read_ranges, weight_settings

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The names of a checkpoint's weights, in the order in which transformers looks for them."""

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose config has been read.

    Attributes:
        name: A folder, or a model's name on the hub.
        config: Its config; that of a BERT also for an old QDQBERT checkpoint.
        model_class: The class to load it with.
    """

    name: str
    config: PreTrainedConfig
    model_class: Any

    @property
    def quantization(self) -> QDQConfig | None:
        """How the checkpoint is quantized; None if it is a float one."""
        found = getattr(self.config, "quantization_config", None)
        if found is None or isinstance(found, QDQConfig):
            return found
        config: QDQConfig = QDQConfig.from_dict(found)
        return config

    def plan(self, config: QDQConfig | None = None) -> Plan:
        """Return the plan for the model, without loading weights.

        Args:
            config: What to quantize; None for the defaults, or of a quantized checkpoint its own.

        Raises:
            UnsupportedModelError: If no rule knows the model, or nothing in it would be quantized.
            OverrideError: If an override of `config` matches no quantizer.
        """
        with torch.device("meta"):
            if hasattr(self.model_class, "from_config"):
                model = self.model_class.from_config(self.config)
            else:
                model = self.model_class(self.config)
        own = self.quantization
        if config is not None or own is None:
            return find_sites(model, config)
        if own.weight is None:
            own = dataclasses.replace(own, weight=weight_settings(self.ranges()))
        return find_sites(model, own, strict=False)

    def ranges(self) -> dict[str, Tensor]:
        """Return the ranges that the checkpoint holds, by quantizer, and check that its files are whole.

        Raises:
            CheckpointError: If a file of weights is missing or damaged.
        """
        found: dict[str, Tensor] = {}
        for file in self.weight_files():
            try:
                found |= read_ranges([file])
            except (OSError, ValueError, RuntimeError, EOFError, SafetensorError) as error:
                raise CheckpointError(
                    f"{file} is damaged ({_first_line(error)}). Copy or download it again."
                ) from error
        return found

    def weight_files(self) -> list[str]:
        """Return the paths of the files that hold the weights.

        Raises:
            CheckpointError: If there is none, or one that the index names is missing.
        """
        for weights in WEIGHTS:
            if file := find_file(self.name, weights):
                return [file]
            if index := find_file(self.name, f"{weights}.index.json"):
                names = sorted(
                    set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
                )
                files = [(name, find_file(self.name, name)) for name in names]
                if missing := [name for name, file in files if file is None]:
                    raise CheckpointError(f"{self.name} lacks {', '.join(missing)}, which its index names.")
                return [file for _, file in files if file is not None]
        raise CheckpointError(f"{self.name} has no weights: neither {' nor '.join(WEIGHTS)} is there.")

    def load(self) -> tuple[PreTrainedModel, list[str]]:
        """Load the model.

        Returns:
            The model and the names of weights that the checkpoint lacks and that are random now.

        Raises:
            CheckpointError: If transformers cannot load it.
        """
        try:
            model, info = self.model_class.from_pretrained(
                self.name, config=self.config, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            if isinstance(error, QdqError):
                raise
            raise CheckpointError(f"Cannot load {self.name}: {_first_line(error)}") from error
        return model, sorted(info["missing_keys"])


def open_checkpoint(name: str, task: str | None = None) -> Checkpoint:
    """Read the config of a checkpoint and settle the class to load it with.

    Args:
        name: A folder, or a model's name on the hub.
        task: A key of `AUTO_CLASSES`; None takes the class that the config names.

    Raises:
        CheckpointError: If there is no checkpoint of that name, or its config cannot be read.
    """
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{name} is a file; name the folder that holds config.json and the weights.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise CheckpointError(f"{name} has no config.json, so it is not a transformers checkpoint.")
    if not folder.is_dir() and not HUB_NAME.fullmatch(name):
        raise CheckpointError(f"There is no folder {name}.")
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, QdqError):
            raise
        if folder.is_dir():
            raise CheckpointError(f"Cannot read the config of {name}: {_first_line(error)}") from error
        raise CheckpointError(
            f"There is no folder {name} here, and no model of that name on the hub: {_first_line(error)}"
        ) from error
    return Checkpoint(name, config, _model_class(config, task))


def _model_class(config: PreTrainedConfig, task: str | None) -> Any:
    architecture = next(iter(config.architectures or []), None)
    if task is None and architecture is not None and hasattr(transformers, architecture):
        return getattr(transformers, architecture)
    return getattr(transformers, AUTO_CLASSES[task or "feature-extraction"])


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
