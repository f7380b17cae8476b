"""A model in an engine, as data: what `bench` and `eval` run."""

from __future__ import annotations

from dataclasses import dataclass

from qdqpatch.choices import RUNNERS
from qdqpatch.engines.gpu import GPU_ENGINES
from qdqpatch.engines.sessions import ENGINES, Engine

TORCH = RUNNERS[0]


@dataclass(frozen=True)
class Facts:
    """What a config says about what a model can be given; None for what it does not say.

    Attributes:
        vocab_size: Token ids are below this.
        max_length: The longest sequence.
        pad_token_id: The id that is padding.
        image: Channels, height and width of the images that it takes.
    """

    vocab_size: int | None = None
    max_length: int | None = None
    pad_token_id: int | None = None
    image: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Contender:
    """A model in an engine.

    Attributes:
        model: What the table calls it.
        engine: One of `RUNNERS`.
        path: What the engine loads: a file; for torch a checkpoint's folder or its name on the hub.
        facts: What the config beside it says.
    """

    model: str
    engine: str
    path: str
    facts: Facts

    def __str__(self) -> str:
        return f"{self.model} in {self.engine}"


def engine_of(name: str) -> Engine:
    """Return the engine of a name, on the CPU or on a GPU."""
    return GPU_ENGINES[name] if name in GPU_ENGINES else ENGINES[name]
