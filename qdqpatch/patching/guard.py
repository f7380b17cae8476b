"""What keeps a quantized checkpoint from being loaded as a float model where this package is not imported.

To a `quant_method` that it does not know, transformers says a warning and loads the float model. The one
thing in a `config.json` that makes every version of transformers 5 refuse a checkpoint, of any architecture
and with any options, is the name of an implementation that it does not have. The one for experts is taken:
encoders have none, so that it says nothing else. That for attention would get in the way of
`output_attentions`, and counts for nothing where a user passes another.
"""

from __future__ import annotations

from transformers import PreTrainedConfig

FIELD = "_experts_implementation"
"""A property of every config, and the name by which all of these versions take its value from a file."""

WHOLE = "import qdqpatch, then from_pretrained"
PART = "import qdqpatch, then from_pretrained of the whole model"
"""What transformers quotes when it refuses: what to do. Of a part there are no ranges by its own names."""


def guard(config: PreTrainedConfig) -> None:
    """Make the files that a config is written to ask for this package; the config says what it said."""
    # Past the property, which would change the model that is there. All that is in here is written.
    vars(config)[FIELD] = WHOLE
    for part in _parts(config):
        vars(part)[FIELD] = PART


def unguard(config: PreTrainedConfig) -> None:
    """Undo `guard`."""
    for one in (config, *_parts(config)):
        vars(one).pop(FIELD, None)


def lift(config: PreTrainedConfig) -> None:
    """Let a config that was read from a guarded file make models."""
    for one in (config, *_parts(config)):
        if getattr(one, FIELD, None) in (WHOLE, PART):
            setattr(one, FIELD, None)


def _parts(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """Return the configs inside a composite model's, of any depth."""
    parts = [getattr(config, name, None) for name in config.sub_configs]
    there = [part for part in parts if isinstance(part, PreTrainedConfig)]
    return [*there, *(deeper for part in there for deeper in _parts(part))]
