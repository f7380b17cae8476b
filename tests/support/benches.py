"""What the tests of `qdqpatch bench` share."""

from pathlib import Path

import pytest
from exported import VOCABULARY

from qdqpatch.bench import side_by_side
from qdqpatch.bench.process import Footprint
from qdqpatch.engines.contenders import Contender, Facts
from qdqpatch.engines.shapes import Shape

TINY = Facts(VOCABULARY)
"""What a config beside a tiny exported model would say."""


def file_contender(path: Path, engine: str = "onnxruntime", facts: Facts = TINY) -> Contender:
    """Return a file in an engine."""
    return Contender(path.name, engine, str(path), facts)


def weigh_nothing(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, str]]:
    """Start no processes; return a list of what they would have been started for."""
    started: list[tuple[str, int, str]] = []

    def fake(contender: Contender, threads: int, shape: Shape) -> Footprint:
        started.append((str(contender), threads, str(shape)))
        return Footprint(0.5, 3_000_000, 9_000_000)

    monkeypatch.setattr(side_by_side, "alone", fake)
    return started
