"""Code that a checkpoint brings along: its config names it where transformers' own class was loaded too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

WHERE = "auto_map"
"""The part of a config that names the files with the code."""

OWN = "transformers_modules."
"""Where transformers puts the classes of such code."""

_TRUSTED: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trusting_code(trusted: bool = True) -> Iterator[None]:
    """Let checkpoints that are read in the block run their code, or not."""
    token = _TRUSTED.set(trusted)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def is_code_trusted() -> bool:
    """Whether checkpoints may run their code: what transformers calls `trust_remote_code`."""
    return _TRUSTED.get()


def named_code(config: PreTrainedConfig, auto_class: str | None = None) -> str | None:
    """Return the Auto class for which a config names a class of its own; None if there is none.

    Args:
        config: The config.
        auto_class: The Auto class that is wanted; None for that of the class that the checkpoint was saved
            from.
    """
    named = getattr(config, WHERE, None) or {}
    if auto_class is None:
        saved = next(iter(config.architectures or []), None)
        of_it = (auto for auto, place in named.items() if str(place).rpartition(".")[2] == saved)
        auto_class = next(of_it, None)
    return auto_class if auto_class in named else None


def forget_code(config: PreTrainedConfig, model_class: type) -> None:
    """Take out of a config what names other classes than the model's.

    A folder that is written of the model has no such files, and its names of weights and quantizers are those
    of this class. With `trust_remote_code=True`, as sentence-transformers asks for, it could not be loaded.
    """
    if not model_class.__module__.startswith(OWN):
        vars(config).pop(WHERE, None)
