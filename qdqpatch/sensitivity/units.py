"""The units that an engine fuses, and so those that are quantized or left in float as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel

from qdqpatch.config.config import PARTS, QDQConfig
from qdqpatch.config.quantizer import Override
from qdqpatch.errors import ConfigError, UnsupportedModelError
from qdqpatch.patching.apply import enabled_quantizers
from qdqpatch.patching.quantize import float_twin
from qdqpatch.patching.sites import find_sites
from qdqpatch.rules import rules_of
from qdqpatch.rules.linears import Linears
from qdqpatch.rules.matmuls import AttentionMatmuls

Kind = Literal["attention", "feed-forward", "residual add", "embeddings", "pooler", "head"]

IN_LAYERS = ("linears", "matmuls")
"""The parts of a configuration whose rules look inside layers and their attentions."""

OUTSIDE: dict[str, Kind] = {"embeddings": "embeddings", "pooler": "pooler", "head": "head"}
"""What the quantizers outside of layers are units of, by their part of the configuration."""


@dataclass(frozen=True)
class Unit:
    """Quantizers that are worth turning off only together.

    Attributes:
        name: Such as `layer 3, attention`; no two units of a model have the same.
        kind: What it computes.
        quantizers: The paths of its quantizers that are on.
    """

    name: str
    kind: Kind
    quantizers: tuple[str, ...]

    @property
    def overrides(self) -> tuple[Override, ...]:
        """What a `QDQConfig` leaves exactly these quantizers off by."""
        return tuple(Override(path, enabled=False) for path in self.quantizers)


def find_units(model: PreTrainedModel) -> tuple[Unit, ...]:
    """Return the units of a quantized model, in the order of its modules.

    In a layer, each child that holds an attention is a unit with all Linears and both matmuls in it; the
    layer's other Linears are its feed-forward; each residual add is a unit of its own. Embeddings, pooler
    and head are units where they are quantized.

    Args:
        model: A quantized model; it is only read.

    Returns:
        The units; each quantizer that is on belongs to exactly one of them.

    Raises:
        NotQuantizedError: If the model has no enabled quantizer, or was not quantized by qdqpatch.
        ConfigError: If a quantizer is in no place that the rules know.
    """
    enabled = enabled_quantizers(model)
    twin = float_twin(model)
    parts = _parts(twin)
    layers = tuple(_instances(twin, Linears))
    attentions = tuple(_instances(twin, AttentionMatmuls))
    found: dict[tuple[str, Kind], list[str]] = {}
    for path in enabled:
        if path not in parts:
            raise ConfigError(
                f"{path} was added, or its module hooked, after the model was quantized, so that no "
                "configuration could turn it off. Measure the model as qdqpatch.quantize made it."
            )
        found.setdefault(_place(path, parts[path], layers, attentions), []).append(path)
    return tuple(Unit(name, kind, tuple(paths)) for (name, kind), paths in found.items())


def _parts(twin: PreTrainedModel) -> dict[str, str]:
    """Return the part of the configuration that each quantizer belongs to, by its path."""
    parts = {}
    for part in PARTS:
        alone: QDQConfig = QDQConfig.from_dict({"outputs": True, **{name: name == part for name in PARTS}})
        try:
            sites = find_sites(twin, alone).sites
        except UnsupportedModelError:  # the model has no such part
            continue
        parts.update({f"{site.path}.{name}": part for site in sites for name in site.quantizers})
    return parts


def _instances(twin: PreTrainedModel, kind: type[Linears | AttentionMatmuls]) -> Iterator[str]:
    """Yield the paths of the modules that the rules of a kind look inside: layers, or attentions."""
    models = (module for module in twin.modules() if isinstance(module, PreTrainedModel))
    rules = {rule for model in models for rule in rules_of(model)}
    classes = tuple(
        inside
        for rule in rules
        if isinstance(rule, kind) and rule.part in IN_LAYERS
        for inside in rule.inside
    )
    for path, module in twin.named_modules():
        if isinstance(module, classes):
            yield path


def _place(path: str, part: str, layers: tuple[str, ...], attentions: tuple[str, ...]) -> tuple[str, Kind]:
    """Return name and kind of the unit that a quantizer belongs to."""
    layer = next((prefix for prefix in layers if path.startswith(f"{prefix}.")), None)
    if layer is None:
        return OUTSIDE[part], OUTSIDE[part]
    inner = path.removeprefix(f"{layer}.")
    child, _, rest = inner.partition(".")
    number = rest.partition(".")[0]
    if number.isdigit():  # the parts of a layer are in a list, as T5's are
        child = f"{child}.{number}"
    in_attention = any(f"{attention}.".startswith(f"{layer}.{child}.") for attention in attentions)
    block = child if in_attention else "feed-forward"
    where = _layer_name(layer, layers)
    if part == "residual_adds":
        return f"{where}, {_add_name(inner, block)}", "residual add"
    return f"{where}, {block}", "attention" if in_attention else "feed-forward"


def _add_name(inner: str, block: str) -> str:
    """Return what a residual add is called: no two of a layer have the same name.

    Args:
        inner: The path of one of its quantizers in the layer.
        block: The unit that it comes after.
    """
    owner, _, name = inner.rpartition(".")
    found = re.match(r"add(\d+)_", name)
    if found is not None:  # one of several in one module
        return f"{owner} add {found[1]}".strip()
    return f"{owner} add" if block == "feed-forward" and owner not in ("", "output") else f"{block} add"


def _layer_name(layer: str, layers: tuple[str, ...]) -> str:
    """Return `layer 3`, or the whole path where the model has several stacks of layers."""
    stack, _, number = layer.rpartition(".")
    alone = all(prefix.rpartition(".")[0] == stack for prefix in layers)
    return f"layer {number}" if alone else layer
