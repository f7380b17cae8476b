"""Whether what a checkpoint holds is what its class takes: what is on disk is what is loaded.

transformers loads what fits, makes up what is missing and drops what is left over. Of these, what is meant is
a head that is exchanged and a pooler that is not there; all else is a checkpoint that was not understood.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, PreTrainedModel

from qdqpatch.errors import CheckpointError
from qdqpatch.spelling import counted, spelled

NOT_WEIGHTS = re.compile(r"(^|\.)(position_ids|rotary_emb\.inv_freq)$")
"""Constants that old versions of transformers stored with the weights."""

WRAPPERS = {
    "module": "DistributedDataParallel",
    "_orig_mod": "torch.compile",
    "base_model": "peft",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
}
"""What puts a prefix before all names, by the prefix."""

STATE = ("._amax", "._zero_point")
"""How the names of a quantizer's tensors end."""

RANGE = re.compile(r"\.[a-z_]*_quantizer\.(_amax|_zero_point)$")


@dataclass(frozen=True)
class Request:
    """What a checkpoint is to be loaded as.

    Attributes:
        name: The checkpoint.
        task: The head that was asked for; None for the checkpoint's own.
        is_named: Whether the config names the class, or it was taken because there was no better one.
    """

    name: str
    task: str | None
    is_named: bool


def check_fit(
    model: PreTrainedModel, info: Mapping[str, Any], names: Collection[str], request: Request
) -> None:
    """Find out whether the encoder was loaded whole, and nothing was left over that the model would need.

    Args:
        model: The model, on any device.
        info: What `from_pretrained(output_loading_info=True, ignore_mismatched_sizes=True)` said.
        names: The names of all weights in the checkpoint.
        request: What was asked for.

    Raises:
        CheckpointError: If not; the message says what is wrong and what to do.
    """
    name, kind = request.name, type(model).__name__
    missing = missing_in_encoder(model, info["missing_keys"])
    if len(missing) * 2 > sum(_is_encoder(model, key) for key in model.state_dict()):
        raise CheckpointError(f"{name} holds next to no weights of {kind}: {_instead(model, names)}")
    if info["mismatched_keys"]:
        raise CheckpointError(_mismatch(model, sorted(info["mismatched_keys"]), request))
    leftover = sorted(key for key in info["unexpected_keys"] if not NOT_WEIGHTS.search(key))
    if strange := _strange(model, leftover, request):
        raise CheckpointError(_left_over(kind, strange, request))
    if missing:
        raise CheckpointError(f"{name} is not whole: it lacks {some(missing)}.")


def missing_in_encoder(model: PreTrainedModel, missing: Iterable[str]) -> list[str]:
    """Return those weights that lie below the head and below a pooler."""
    return sorted(name for name in missing if _is_encoder(model, name) and not name.endswith(STATE))


def missing_in_head(model: PreTrainedModel, missing: Iterable[str]) -> list[str]:
    """Return those weights that the head needs, its pooler too; a bare encoder has no head."""
    if model.base_model is model:
        return []
    return sorted(name for name in missing if not _is_encoder(model, name) and not name.endswith(STATE))


def some(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {counted(len(names) - 3, 'more weight')}" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _is_encoder(model: PreTrainedModel, name: str) -> bool:
    inside = model.base_model is model or name.startswith(f"{model.base_model_prefix}.")
    return inside and ".pooler." not in f".{name}"


def _instead(model: PreTrainedModel, names: Collection[str]) -> str:
    """Say what the checkpoint holds in place of the model's weights."""
    wanted = set(model.state_dict())
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for count in range(1, min(4, len(parts))):
            if ".".join(parts[count:]) in wanted:
                found[".".join(parts[:count])] += 1
                break
    if not found:
        return f"it has {some(sorted(names)) or 'none'}, and the class wants {some(sorted(wanted))}."
    prefix = found.most_common(1)[0][0]
    maker = WRAPPERS.get(prefix.partition(".")[0])
    by = f", which {maker} puts there" if maker else ""
    if maker == "peft":
        return f"their names begin with '{prefix}.'{by}. Merge the adapter: merge_and_unload(), then save."
    return f"their names begin with '{prefix}.'{by}. Take it off the names and save the weights again."


def _mismatch(
    model: PreTrainedModel, mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]], request: Request
) -> str:
    name, stored, built = mismatched[0]
    others = counted(len(mismatched) - 1, "more weight differs", "more weights differ")
    more = f", and {others}" if len(mismatched) > 1 else ""
    text = (
        f"Cannot load {request.name}: {name} has shape {tuple(stored)} in it, and {tuple(built)} by its "
        f"config.json{more}."
    )
    if getattr(model.config, "pruned_heads", None):
        return f"{text} Its heads were pruned (pruned_heads), and transformers 5 has no pruned heads."
    return f"{text} Correct the config, or copy the weights that belong to it."


def _strange(model: PreTrainedModel, leftover: Sequence[str], request: Request) -> list[str]:
    """Return what should have found its place.

    A head that was exchanged on purpose should not, and of a class that the config names, what its family is
    pretrained with should not: fine-tuning leaves that behind.
    """
    if not leftover:
        return []
    if request.task is None and not request.is_named:
        return list(leftover)
    own = {_bare(model, name) for name in _family_names(model)}
    unknown = [name for name in leftover if _bare(model, name) not in own]
    if request.task is None:
        return unknown
    parts = {name for name, _ in model.base_model.named_children()}
    return [name for name in unknown if _bare(model, name).partition(".")[0] in parts]


def _bare(model: PreTrainedModel, name: str) -> str:
    """Return a weight's name without the base model's prefix, its quantizer's, and the old words for it."""
    name = RANGE.sub(".weight", name.removeprefix(f"{model.base_model_prefix}."))
    return re.sub(r"\bgamma$", "weight", re.sub(r"\bbeta$", "bias", name))


def _family_names(model: PreTrainedModel) -> set[str]:
    """Return the weights that the bare model and the pretraining classes of its family have."""
    names: set[str] = set()
    for auto_class in (AutoModel, AutoModelForPreTraining, AutoModelForMaskedLM):
        try:
            with torch.device("meta"):
                found: Any = auto_class
                names |= set(found.from_config(model.config, trust_remote_code=False).state_dict())
        except ValueError:  # not every family has all three
            continue
    return names


def _left_over(kind: str, strange: Sequence[str], request: Request) -> str:
    text = f"{kind} has no place for {counted(len(strange), 'weight')} of {request.name}: {some(strange)}."
    if all(name.endswith(STATE) for name in strange):
        return f"{text} They are ranges of quantizers that its config.json does not tell of."
    if any("lora_" in name for name in strange):
        return f"{text} They are a LoRA adapter's: merge it (merge_and_unload) and save the model."
    if request.task is not None:
        return f"{text} The model that they belong to computes something else."
    if request.is_named:
        return f"{text} If they are a head to be left behind, {_name_it()}."
    return f"{text} Its config.json names no class of transformers (architectures): {_name_it()}."


def _name_it() -> str:
    return spelled(
        "load it by the class of the head that is wanted", "name the head that is wanted with --task"
    )
