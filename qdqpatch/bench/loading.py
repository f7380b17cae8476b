"""Contenders, loaded and ready to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qdqpatch.bench.inputs import check_inputs, make_inputs
from qdqpatch.data.arrays import Arrays
from qdqpatch.engines.contenders import TORCH, Contender, engine_of
from qdqpatch.engines.sessions import Input, fixed_sizes
from qdqpatch.engines.shapes import Shape
from qdqpatch.errors import EngineError, one_line


@dataclass(frozen=True)
class Loaded:
    """A contender that is ready to run.

    Attributes:
        contender: Which one.
        inputs: What it takes.
        note: What a reader of its figures has to know.
    """

    contender: Contender
    inputs: tuple[Input, ...]
    _run: Callable[[Arrays], object]
    note: str | None = None

    @property
    def takes(self) -> str:
        """The shapes that it is made for, as `1x128`, with `?` for a size that is free."""
        return "x".join("?" if size is None else str(size) for size in fixed_sizes(self.inputs))

    def fits(self, shape: Shape) -> bool:
        """Whether the graph was made for that shape, or for any."""
        sizes = zip(fixed_sizes(self.inputs), (shape.batch, shape.length), strict=True)
        return all(fixed in (None, asked) for fixed, asked in sizes)

    def runner(self, shape: Shape) -> Callable[[], object]:
        """Return a call that runs it once; its inputs are made now.

        The call raises EngineError if the engine fails.
        """
        inputs = make_inputs(self.inputs, shape, self.contender.facts)

        def run() -> object:
            try:
                return self._run(inputs)
            except Exception as error:  # engines raise types of their own
                hint = "" if self.contender.facts.vocab_size else " Is its config.json beside it?"
                raise EngineError(f"{self.contender}, {shape}: {one_line(error)}{hint}") from error

        return run


def load(contender: Contender, threads: int) -> Loaded:
    """Load a contender; torch's number of threads is not set here.

    Raises:
        CheckpointError: If transformers cannot load a checkpoint, or it lacks weights.
        EngineError: If an engine refuses a file.
        ConfigError: If the model takes something else than tokens or images.
    """
    if contender.engine == TORCH:
        from qdqpatch.bench.checkpoints import load_checkpoint  # imports torch, which files run without

        loaded = load_checkpoint(contender)
    else:
        loaded = _load_file(contender, threads)
    check_inputs(str(contender), loaded.inputs)
    return loaded


def _load_file(contender: Contender, threads: int) -> Loaded:
    try:
        session = engine_of(contender.engine).load(Path(contender.path), threads)
    except EngineError as error:
        raise EngineError(one_line(error)) from error
    return Loaded(contender, session.inputs, session.run, session.note)
