"""Rules for a model type that has none of its own, found by looking at the model; no model's name is here.

Layers are the members of an `nn.ModuleList` that hold a Linear. Inside them an attention is a class that asks
transformers for the attention function, or whose `forward` has two matrix products and a softmax; and a
block is any class whose `forward` adds what it computed to what it was given. What is left is named by
`unreached.py`.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from qdqpatch.rules.adds import ResidualAdds
from qdqpatch.rules.base import Rule
from qdqpatch.rules.linears import Embeddings, Linears
from qdqpatch.rules.matmuls import AttentionMatmuls, calls_interface
from qdqpatch.rules.reading import parts_of
from qdqpatch.rules.unreached import FloatAdds, Uncalled, Unreached, adds_in, products_in
from qdqpatch.rules.values import SOFTMAX

POOLER = "pooler"
"""What transformers calls what computes from the last layer's output what the task heads read."""


def structural_rules(model: PreTrainedModel) -> tuple[Rule, ...]:
    """Return the rules that fit what the model is made of."""
    layers = layer_classes(model)
    inside: dict[type[nn.Module], bool] = {}
    for layer in model.modules():
        if isinstance(layer, layers):
            for module in layer.modules():
                if not type(module).__module__.startswith("torch."):
                    inside[type(module)] = next(module.children(), None) is not None
    attention = tuple(
        cls for cls in inside if calls_interface(cls) or (products_in(cls) > 0 and _has_softmax(cls))
    )
    members = member_classes(model)
    rules: list[Rule] = [Uncalled(layers), Linears(layers), Unreached(members, attention)]
    if attention:
        rules.append(AttentionMatmuls(attention))
    counted: dict[int, list[type[nn.Module]]] = {}
    for cls, has_children in inside.items():
        if has_children:
            counted.setdefault(adds_in(cls), []).append(cls)
    rules += [ResidualAdds(tuple(classes), count) for count, classes in counted.items() if count]
    blocks = tuple(cls for count, classes in counted.items() if count for cls in classes)
    rules += [FloatAdds(blocks), Embeddings((PreTrainedModel,), besides=members)]
    poolers = tuple(type(module) for path, module in model.named_modules() if _is_pooler(path, module))
    return (*rules, Linears(poolers, part="pooler"), Linears((PreTrainedModel,), part="head"))


def layer_classes(model: nn.Module) -> tuple[type[nn.Module], ...]:
    """Return the classes of the model's layers."""
    return tuple(
        cls
        for cls in member_classes(model)
        if any(
            isinstance(part, nn.Linear)
            for module in model.modules()
            if type(module) is cls
            for part in module.modules()
        )
    )


def member_classes(model: nn.Module) -> tuple[type[nn.Module], ...]:
    """Return the classes of what stands in a list of modules."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    kinds = dict.fromkeys(type(member) for members in lists for member in members)
    return tuple(cls for cls in kinds if not issubclass(cls, (nn.ModuleList, nn.Linear)))


def _is_pooler(path: str, module: nn.Module) -> bool:
    return path.rpartition(".")[2] == POOLER and not type(module).__module__.startswith("torch.")


def _has_softmax(cls: type[nn.Module]) -> bool:
    return any(SOFTMAX in name.lower() for part in parts_of(cls) for name in part.names)
