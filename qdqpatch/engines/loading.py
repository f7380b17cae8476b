"""Models in engines that refuse some of them: what loads is loaded, and what does not is told of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from qdqpatch.engines.contenders import Contender
from qdqpatch.errors import EngineError, QdqError

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Skipped:
    """A model that an engine could not load.

    Attributes:
        model: What the table calls the model.
        engine: The engine.
        reason: What it said.
    """

    model: str
    engine: str
    reason: str


def load_each(
    contenders: Sequence[Contender], load: Callable[[Contender], Loaded], strict: bool
) -> tuple[list[Loaded], list[Skipped]]:
    """Load contenders; leave out those that cannot be loaded while another engine runs the same model.

    Args:
        contenders: What to load.
        load: Loads one.
        strict: Whether nothing may be left out, because the engines were asked for.

    Raises:
        EngineError: If no engine is left for a model.
        QdqError: What `load` raises, if strict or no other engine is to run the model.
    """
    loaded: dict[Contender, Loaded] = {}
    skipped: list[Skipped] = []
    for contender in contenders:
        try:
            loaded[contender] = load(contender)
        except QdqError as error:
            if strict or sum(candidate.model == contender.model for candidate in contenders) == 1:
                raise
            skipped.append(Skipped(contender.model, contender.engine, str(error)))
    running = {contender.model for contender in loaded}
    for refused in skipped:
        if refused.model not in running:
            reasons = (refusal.reason for refusal in skipped if refusal.model == refused.model)
            raise EngineError(f"{refused.model} runs in no engine. {' '.join(reasons)}")
    return list(loaded.values()), skipped
