"""The transformers model inside what people hold: a `SentenceTransformer`, a `CrossEncoder`, a pipeline."""

from __future__ import annotations

import os
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from qdqpatch.errors import UnsupportedModelError

LIBRARY = "sentence_transformers."
INSIDE = "transformers_model"
"""What the models of sentence-transformers call the model inside them."""

ATTRIBUTES = (INSIDE, "_orig_mod", "module", "model", "auto_model", "base_model")
"""Where wrappers have a model: torch.compile, torch's parallel modules, pipelines, peft.

What torch.compile returns has all attributes of the model in it, a `base_model` without the head too, so its
own comes first.
"""


def is_sentence_model(model: object) -> bool:
    """Whether an object is a `SentenceTransformer`, a `CrossEncoder` or another model of that library."""
    return any(one.__module__.startswith(LIBRARY) for one in type(model).__mro__) and hasattr(model, INSIDE)


def unwrapped(model: Any) -> Any:
    """Return the transformers model inside a model of sentence-transformers; any other module as it is.

    Raises:
        UnsupportedModelError: If it is no module, or holds no transformers model.
    """
    if is_sentence_model(model):
        inner = getattr(model, INSIDE)
        if isinstance(inner, PreTrainedModel):
            _check_alone(model)
            return inner
        kind = "none" if inner is None else f"a {type(inner).__name__}"
        raise UnsupportedModelError(
            f"The transformers model inside this {type(model).__name__} (.{INSIDE}) is {kind}: load it in "
            "torch."
        )
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(refusal(model))
    return model


def _check_alone(model: nn.Module) -> None:
    """Find out that there is one transformers model in it, not one for queries and another for documents.

    Raises:
        UnsupportedModelError: If there are several.
    """
    found: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and not any(path.startswith(f"{outer}.") for outer in found):
            found.append(path)
    if len(found) > 1:
        raise UnsupportedModelError(
            f"This {type(model).__name__} has {len(found)} transformers models. Pass them one by one: "
            f"{', '.join(f'model.get_submodule({path!r})' for path in found)}."
        )


def refusal(model: object) -> str:
    """Say that an object is no transformers model, and where in it there is one."""
    expected = (
        "Expected a transformers model such as AutoModel.from_pretrained(...) gives, not a "
        f"{type(model).__name__}."
    )
    if isinstance(model, str | os.PathLike):
        return (
            "This is the name of a model, not the model. Load it first: "
            f"AutoModel.from_pretrained({str(model)!r}), or the class with its head."
        )
    for name in ATTRIBUTES:
        if isinstance(getattr(model, name, None), PreTrainedModel):
            return f"{expected} Of a wrapper, pass the model inside it: its attribute .{name}."
    return f"{expected} Of a pipeline or wrapper, pass the model inside it."
