"""A checkpoint to read: found, identified and checked before its weights are loaded."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from qdqpatch.checkpoint.files import HUB_NAME
from qdqpatch.checkpoint.fitting import Request, missing_in_head, some
from qdqpatch.checkpoint.loading import check_unloaded, load_fitting, model_on_meta
from qdqpatch.checkpoint.refusals import unreadable, without_config
from qdqpatch.checkpoint.sizes import check_counts
from qdqpatch.checkpoint.weight_files import has_weights, weight_files
from qdqpatch.choices import AUTO_CLASSES, QUANT_METHOD
from qdqpatch.config.config import QDQConfig
from qdqpatch.errors import CheckpointError, QdqError
from qdqpatch.patching.finite import check_finite
from qdqpatch.patching.guard import lift
from qdqpatch.patching.own_code import forget_code, is_code_trusted, named_code
from qdqpatch.patching.plan import Plan
from qdqpatch.patching.positions import check_positions
from qdqpatch.patching.sites import find_sites
from qdqpatch.patching.stored_ranges import (
    check_shape,
    read_ranges,
    stored_name,
    weight_settings,
    weight_shape,
)
from qdqpatch.patching.tensor_files import read_shapes
from qdqpatch.patching.zero_points import read_zero_points

ADAPTER = "adapter_config.json"
"""What tells a folder with an adapter of peft."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose config has been read.

    Attributes:
        name: A folder, or a model's name on the hub.
        config: Its config; that of a BERT also for an old QDQBERT checkpoint.
        model_class: The class to load it with.
        task: The head that was asked for, a key of `AUTO_CLASSES`; None for the checkpoint's own.
    """

    name: str
    config: PreTrainedConfig
    model_class: Any
    task: str | None = None

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
            CheckpointError: If its config is that of no model, or a stored range fits no quantizer.
        """
        model = self._on_meta(self._shapes() if Path(self.name).is_dir() and has_weights(self.name) else None)
        own = self.quantization
        if config is not None or own is None:
            return find_sites(model, config)
        ranges = self.ranges()
        if own.weight is None:
            own = dataclasses.replace(own, weight=weight_settings(ranges))
        plan = find_sites(model, own, strict=False)
        for site in plan.sites:
            for name, settings in site.quantizers.items():
                path = f"{site.path}.{name}"
                stored = stored_name(path, ranges, model.base_model_prefix)
                if stored is not None and settings is not None:
                    check_shape(path, ranges[stored], settings.axis, weight_shape(model, path))
        return plan

    def check_weights(self, fresh_head: bool = False) -> list[str]:
        """Find out without loading whether the weights are those of the class, and all files are whole.

        Args:
            fresh_head: Whether the head may be one that the checkpoint does not hold.

        Returns:
            The names of weights outside the encoder that the checkpoint lacks: its head's, or its pooler's.

        Raises:
            CheckpointError: As `load` does.
        """
        shapes = self._shapes()
        model = self._on_meta(shapes)
        check_positions(model)
        missing = check_unloaded(model, shapes, self._request)
        if not fresh_head:
            self._check_head(model, missing)
        return missing

    def ranges(self) -> dict[str, Tensor]:
        """Return the ranges that the checkpoint holds, by quantizer, and check that its files are whole.

        Raises:
            CheckpointError: If a file of weights is missing or damaged, or a range is negative or not finite.
        """
        return read_ranges(self.weight_files())

    def zero_points(self) -> dict[str, Tensor]:
        """Return the zero points of ranges that do not lie around zero, by quantizer.

        Raises:
            CheckpointError: If a file of weights is missing or damaged, or one is no whole number.
        """
        return read_zero_points(self.weight_files())

    def weight_files(self) -> list[str]:
        """Return the paths of the files that hold the weights.

        Raises:
            CheckpointError: If there is none, or one that the index names is missing.
        """
        return weight_files(self.name)

    def load(
        self, fresh_head: bool = False, finite: bool = True, **options: Any
    ) -> tuple[PreTrainedModel, list[str]]:
        """Load the model.

        Args:
            fresh_head: Whether the head may be one that the checkpoint does not hold: it is random then.
            finite: Whether to refuse weights that are NaN or infinite.
            **options: Passed on to `from_pretrained`.

        Returns:
            The model and the names of weights that the checkpoint lacks and that are random now: the
            head's, or the pooler's of a model without a head.

        Raises:
            CheckpointError: If transformers cannot load it, its weights are not those of the class, or
                something is missing or is no number.
            ConfigError: If it has relative positions, which BERT in transformers 5 no longer computes.
        """
        shapes = self._shapes()
        check_positions(self._on_meta(shapes))
        model, missing = load_fitting(self.model_class, shapes, self._request, config=self.config, **options)
        if not fresh_head:
            self._check_head(model, missing)
        if finite:
            check_finite(model, self.name)
        return model, missing

    def _check_head(self, model: PreTrainedModel, missing: list[str]) -> None:
        if head := missing_in_head(model, missing):
            purpose = f"model for {self.task}" if self.task else f"whole {type(model).__name__}"
            raise CheckpointError(f"{self.name} is no {purpose}: it lacks {some(head)}.")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return read_shapes(self.weight_files())

    def _on_meta(self, shapes: dict[str, tuple[int, ...]] | None) -> PreTrainedModel:
        return model_on_meta(self.model_class, self.config, self.name, shapes)

    @property
    def _request(self) -> Request:
        return Request(self.name, self.task, _named_class(self.config) is not None)


def open_checkpoint(name: str, task: str | None = None) -> Checkpoint:
    """Read the config of a checkpoint and settle the class to load it with.

    Args:
        name: A folder, or a model's name on the hub.
        task: A key of `AUTO_CLASSES`; None takes the class that the config names.

    Raises:
        CheckpointError: If there is no checkpoint of that name, its config cannot be read, or it is an
            adapter or quantized by another tool.
    """
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{name} is a file; name the folder that holds config.json and the weights.")
    if not folder.is_dir() and not HUB_NAME.fullmatch(name):
        raise CheckpointError(f"There is no folder {name}.")
    if (folder / ADAPTER).is_file():
        raise CheckpointError(
            f"{name} holds an adapter ({ADAPTER}), such as LoRA's, and not a whole model. Merge it into its "
            "model first: merge_and_unload() of peft, then save_pretrained to another folder."
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise CheckpointError(without_config(name))
    if folder.is_dir():
        check_counts(_content(folder / "config.json"), name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=is_code_trusted())
    except QdqError:
        raise
    except Exception as error:  # a config can hold anything, and what that raises is anything too
        raise CheckpointError(unreadable(name, error)) from error
    if isinstance(config.architectures, str):
        config.architectures = [config.architectures]
    if not isinstance(config.architectures, list | tuple | None):
        raise CheckpointError(
            f"The architectures in config.json of {name} must be a list of classes, not "
            f"{config.architectures!r}."
        )
    _check_method(name, getattr(config, "quantization_config", None))
    lift(config)
    model_class = _model_class(name, config, task)
    forget_code(config, model_class)
    return Checkpoint(name, config, model_class, task)


def _content(file: Path) -> dict[str, Any]:
    """Return what a config holds; nothing of one that cannot be read, which transformers refuses."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_method(name: str, found: object) -> None:
    """Refuse what another tool quantized: it would be read as a float checkpoint with odd weights."""
    if found is None or isinstance(found, QDQConfig):
        return
    if not isinstance(found, dict):
        raise CheckpointError(
            f"The quantization_config in config.json of {name} must be an object, not {found!r}."
        )
    method = found.get("quant_method")
    if method is None:
        raise CheckpointError(
            f"The quantization_config in config.json of {name} does not say which tool quantized it "
            "(quant_method), as old ones of bitsandbytes do not. Name the float checkpoint."
        )
    if method != QUANT_METHOD:
        raise CheckpointError(
            f"{name} is quantized by another tool ({method}), whose checkpoints are not read here. Name the "
            "float checkpoint."
        )


def _named_class(config: PreTrainedConfig) -> Any | None:
    """Return the class that a config names; None if it names none, or one that is not of transformers."""
    architecture = next(iter(config.architectures or []), None)
    found = getattr(transformers, architecture, None) if isinstance(architecture, str) else None
    return found if isinstance(found, type) and issubclass(found, PreTrainedModel) else None


def _model_class(name: str, config: PreTrainedConfig, task: str | None) -> Any:
    named = _named_class(config)
    auto_class = AUTO_CLASSES[task or "feature-extraction"]
    own = named_code(config) if task is None else None
    if own is None and (task is not None or named is None):
        own = named_code(config, auto_class)
    if own is not None and is_code_trusted():
        return type(model_on_meta(getattr(transformers, own), config, name))
    return named if task is None and named is not None else getattr(transformers, auto_class)
