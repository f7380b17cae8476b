"""Code that a checkpoint brings along: its config names it where transformers' own class was loaded too."""

from __future__ import annotations

from transformers import PreTrainedConfig

WHERE = "auto_map"
"""The part of a config that names the files with the code."""

OWN = "transformers_modules."
"""Where transformers puts the classes of such code."""


def forget_code(config: PreTrainedConfig, model_class: type) -> None:
    """Take out of a config what names other classes than the model's.

    A folder that is written of the model has no such files, and its names of weights and quantizers are those
    of this class. With `trust_remote_code=True`, as sentence-transformers asks for, it could not be loaded.
    """
    if not model_class.__module__.startswith(OWN):
        vars(config).pop(WHERE, None)
