"""QDQConfig: what is quantized and how, as frozen data that lives in a model's `config.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from qdqpatch.choices import PRESETS, QUANT_METHOD
from qdqpatch.config.quantizer import Override, QuantizerConfig, build, check_bool
from qdqpatch.errors import ConfigError
from qdqpatch.nn.float8 import E4M3
from qdqpatch.nn.toolkit import QuantDescriptor

PARTS = ("linears", "matmuls", "residual_adds", "embeddings", "pooler", "head")
"""The parts of a model that a `QDQConfig` turns on or off, each a boolean field of that name."""


WEIGHT_DIMS = 2
"""Dimensions of the weight of a Linear or an Embedding."""


@dataclass(repr=False)
class QDQConfig(QuantizationConfigMixin):
    """What is quantized, and how: the whole recipe, kept in the model's `config.json`.

    The default is the placement of QDQBERT (NVIDIA; `modeling_qdqbert.py` of transformers 4.40.2).

    Attributes:
        activation: How activations are quantized. A `QuantDescriptor` is accepted too; None takes
            `QuantLinear.default_quant_desc_input` at the moment a model is quantized.
        weight: The same for weights; None takes `QuantLinear.default_quant_desc_weight`, which is
            int8 with one range per output channel unless it was set.
        linears: Inputs and weights of the Linears in every encoder and decoder layer.
        outputs: Also what these Linears compute, before their biases, so that TensorRT's kernels write int8
            as well as they read it. Needs `linears`.
        matmuls: Both operands of attention's two matrix multiplications.
        residual_adds: Both operands of every residual add.
        embeddings: Weights of the embeddings.
        pooler: Inputs and weights of the pooler's Linear.
        head: Inputs and weights of the task head's Linears.
        overrides: Changes by quantizer path, applied in order, so that the last match wins. Also
            accepts a mapping of pattern to False, True or a dict of settings, and `PATTERN=...` texts.

    Raises:
        ConfigError: If a key is unknown or a value out of range.

    Examples:
        >>> QDQConfig(head=True, overrides={"*.layer.0.*": False, "*_weight_quantizer": {"num_bits": 4}})
        QDQConfig(head=True, overrides=2)
    """

    quant_method: str = field(default=QUANT_METHOD, init=False)  # type: ignore[assignment]  # an open enum
    activation: QuantizerConfig | None = None
    weight: QuantizerConfig | None = None
    linears: bool = True
    matmuls: bool = True
    residual_adds: bool = True
    outputs: bool = False
    embeddings: bool = False
    pooler: bool = False
    head: bool = False
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        for name in ("activation", "weight"):
            object.__setattr__(self, name, _as_quantizer_config(name, getattr(self, name)))
        if self.weight is not None:
            self.weight.check_axis(WEIGHT_DIMS, "a weight, which has two dimensions")
            if not self.weight.symmetric:
                raise ConfigError("Weights lie around zero: symmetric=False is for activations.")
        for name in (*PARTS, "outputs"):
            check_bool(name, getattr(self, name))
        object.__setattr__(self, "overrides", _as_overrides(self.overrides))

    def __setattr__(self, name: str, value: object) -> None:
        # Written out, because a dataclass cannot be frozen when its base, transformers' mixin, is not.
        known = self.__dataclass_fields__.get(name)
        if name in self.__dict__ or known is None or not known.init:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super().__setattr__(name, value)

    @property
    def has_float8(self) -> bool:
        """Whether a quantizer may round to FP8."""
        settings = [item.settings.get("num_bits") for item in self.overrides]
        settings += [part.num_bits for part in (self.activation, self.weight) if part is not None]
        return E4M3 in settings

    @classmethod
    def preset(cls, name: str, **changes: Any) -> QDQConfig:
        """Build a named one: `qdqbert`, `no-residual`, `linear-only`, `outputs` or `fp8`.

        Args:
            name: A key of `PRESETS`.
            **changes: Fields that differ from the preset's.

        Raises:
            ConfigError: If there is no preset of that name.
        """
        if name not in PRESETS:
            raise ConfigError(f"There is no preset {name!r}; there are {', '.join(PRESETS)}.")
        return build(cls, {**PRESETS[name], **changes}, "the configuration")

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Read what `to_dict` wrote; the hook by which transformers reads `config.json`.

        Raises:
            ConfigError: If a key is unknown or a value out of range.
        """
        values = {key: value for key, value in config_dict.items() if key != "quant_method"}
        method = config_dict.get("quant_method", QUANT_METHOD)
        if method != QUANT_METHOD:
            raise ConfigError(f"The quantization config is one of {method!r}, not of {QUANT_METHOD!r}.")
        config = build(cls, values, "the quantization config")
        return (config, kwargs) if return_unused_kwargs else config

    @classmethod
    def from_json_file(cls, path: str | Path) -> QDQConfig:
        """Read a configuration from a JSON file.

        Raises:
            ConfigError: If the file cannot be read, is not a JSON object or has an unknown key.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"Cannot read the configuration {path}: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} must hold a JSON object, not {type(values).__name__}.")
        if "model_type" in values:
            raise ConfigError(
                f"{path} is the config of a model. What is quantized is told by a QDQConfig, as a quantized "
                "model's config.json has it under quantization_config: copy that to a file of its own."
            )
        try:
            config: QDQConfig = cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON-ready data; `from_dict` reads it back unchanged."""
        data = dataclasses.asdict(self)
        for settings in (data["activation"], data["weight"]):
            if settings is not None and settings["symmetric"]:
                del settings["symmetric"]  # releases that do not know it can read the rest
        data["overrides"] = [
            {"pattern": item.pattern, "enabled": item.enabled, **item.settings} for item in self.overrides
        ]
        jsonable: dict[str, Any] = json.loads(json.dumps(data))
        return jsonable

    def update(self, **kwargs: Any) -> dict[str, Any]:
        """Return the keywords untouched: the configuration is frozen (a hook of transformers)."""
        return kwargs

    def __repr__(self) -> str:
        shown = []
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value != item.default:
                shown.append(f"{item.name}={len(value) if item.name == 'overrides' else value!r}")
        return f"QDQConfig({', '.join(shown)})"


def _as_quantizer_config(name: str, value: object) -> QuantizerConfig | None:
    if value is None or isinstance(value, QuantizerConfig):
        return value
    if isinstance(value, QuantDescriptor):
        return QuantizerConfig.from_descriptor(value)
    if isinstance(value, Mapping):
        return build(QuantizerConfig, value, repr(name))
    raise ConfigError(
        f"{name} must be a QuantizerConfig, a QuantDescriptor or a dict of settings, not {value!r}."
    )


def _as_overrides(value: object) -> tuple[Override, ...]:
    if isinstance(value, Mapping):
        return tuple(_as_override({"pattern": key, **_as_change(change)}) for key, change in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_as_override(item) for item in value)
    raise ConfigError(f"overrides must be a list or a mapping of pattern to change, not {value!r}.")


def _as_override(item: object) -> Override:
    if isinstance(item, Override):
        return item
    if isinstance(item, str):
        return Override.parse(item)
    if isinstance(item, Mapping) and "pattern" in item:
        settings = {key: value for key, value in item.items() if key not in ("pattern", "enabled")}
        return Override(item["pattern"], item.get("enabled"), settings)
    raise ConfigError(f"An override is a 'PATTERN=...' text or has a 'pattern', which {item!r} has not.")


def _as_change(change: object) -> Mapping[str, Any]:
    if isinstance(change, bool):
        return {"enabled": change}
    if isinstance(change, Mapping):
        return change
    raise ConfigError(f"An override changes to True, False or a dict of settings, not {change!r}.")
