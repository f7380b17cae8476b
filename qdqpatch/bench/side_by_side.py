"""The whole of a benchmark: find, load and check the models, then measure them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from qdqpatch.bench.inputs import random_tokens
from qdqpatch.bench.loading import Loaded, load
from qdqpatch.bench.measure import RUNS, Latency, interleave
from qdqpatch.bench.process import Footprint, alone
from qdqpatch.bench.report import Benchmark, BenchmarkRow
from qdqpatch.bench.sizes import size_on_disk
from qdqpatch.engines.contenders import TORCH, Contender, engine_of
from qdqpatch.engines.exactness import TEXT_INPUTS, Exactness, exactness
from qdqpatch.engines.loading import Skipped, load_each
from qdqpatch.engines.models import find_contenders
from qdqpatch.engines.sessions import ENGINES, fixed_sizes
from qdqpatch.engines.shapes import DEFAULT_SHAPES, Shape, cut
from qdqpatch.engines.threads import torch_threads
from qdqpatch.errors import ConfigError, EngineError
from qdqpatch.spelling import counted, spelled

Step = Callable[[str, int, int], None]
"""Told what is done now, how many steps are done, and of how many."""


def compare(
    models: Sequence[str],
    *,
    shapes: Sequence[Shape] = (),
    engines: Collection[str] = (),
    threads: int | None = None,
    rounds: int = 20,
    warmup: int = 1,
    iterations: int | None = None,
    step: Step = lambda text, done, total: None,
) -> Benchmark:
    """Measure models side by side, all of them in this process and in turns.

    Args:
        models: Files, folders, and names of checkpoints on the hub. The first one, in the first engine that
            runs it, is the baseline of speed-ups.
        shapes: Of the inputs; empty for `DEFAULT_SHAPES`, cut to what the models take.
        engines: Some of `RUNNERS` and `GPU_RUNNERS`; empty for all that can run here. An engine that was not
            asked for and cannot load a model is skipped.
        threads: That a run may use; None for as many as torch takes by itself, one for each core.
        rounds: Turns of each contender at each shape.
        warmup: Rounds before those, which do not count.
        iterations: At least how many runs of each contender are timed at each shape; None for what `rounds`
            gives.
        step: Told of the progress.

    Raises:
        CheckpointError: If a model is not there, or cannot be loaded.
        EngineError: If an engine is not installed, or fails.
        ConfigError: If a shape is too long for a model, or not the one that its graph is made for.
    """
    contenders = find_contenders(models, engines, gpu=True)
    shapes, shortened = _shapes_for(contenders, shapes)
    threads = threads or torch.get_num_threads()
    rounds = rounds if iterations is None else math.ceil(iterations / RUNS)
    progress = _Progress(step, 2 * len(contenders) + len(shapes) * (warmup + rounds))
    with torch_threads(threads):
        loaded, skipped = _load(contenders, threads, bool(engines), progress)
        fitting = {candidate.contender: _fitting(candidate, shapes) for candidate in loaded}
        sizes = {contender: size_on_disk(contender) for contender in fitting}
        footprints = {}
        for contender, own in fitting.items():
            with progress.doing(f"Loading {contender} in a process of its own"):
                footprints[contender] = alone(contender, threads, max(own, key=lambda shape: shape.tokens))
        latencies = {shape: _time(loaded, shape, rounds, warmup, progress) for shape in shapes}
        exact = {candidate.contender: _exactness(candidate) for candidate in loaded}
    baseline = loaded[0].contender
    rows = []
    for shape, found in latencies.items():
        for candidate in loaded:
            contender = candidate.contender
            latency, reference = found.get(contender), found.get(baseline)
            rows.append(_row(candidate, shape, latency, reference, footprints[contender], sizes[contender]))
    return Benchmark(
        threads,
        rounds,
        _versions(loaded),
        str(baseline),
        tuple(rows),
        tuple(skipped),
        shortened,
        warmup,
        {str(contender): found for contender, found in exact.items() if found is not None},
    )


class _Progress:
    """Counts steps."""

    def __init__(self, step: Step, total: int) -> None:
        self._step, self._total, self._done = step, total, 0

    @contextmanager
    def doing(self, text: str, steps: int = 1) -> Iterator[Callable[[], None]]:
        """Tell what is done now; give a call that counts one of the steps, the rest count at the end."""
        end = self._done + steps
        self._step(text, self._done, self._total)

        def advance() -> None:
            self._done += 1
            self._step(text, self._done, self._total)

        try:
            yield advance
        finally:
            self._done = end
            self._step(text, self._done, self._total)


def _load(
    contenders: Sequence[Contender], threads: int, strict: bool, progress: _Progress
) -> tuple[list[Loaded], list[Skipped]]:

    def load_one(contender: Contender) -> Loaded:
        with progress.doing(f"Loading {contender}"):
            return load(contender, threads)

    return load_each(contenders, load_one, strict)


def _time(
    loaded: Sequence[Loaded], shape: Shape, rounds: int, warmup: int, progress: _Progress
) -> dict[Contender, Latency]:
    """Run the contenders that take the shape in turns."""
    runs = {candidate.contender: candidate.runner(shape) for candidate in loaded if candidate.fits(shape)}
    with progress.doing(f"Running {shape}", warmup + rounds) as advance:
        times = interleave(runs, rounds, after_round=advance, warmup=warmup)
    return {contender: Latency.of(seconds) for contender, seconds in times.items()}


def _exactness(loaded: Loaded) -> Exactness | None:
    """Return whether an exported file gives the same alone and in a batch; None for what cannot be asked."""
    contender = loaded.contender
    names = {value.name for value in loaded.inputs}
    if contender.engine not in ENGINES or not names <= {*TEXT_INPUTS}:
        return None
    ids = random_tokens(Shape(3, min(16, contender.facts.max_length or 16)), contender.facts).tolist()
    rows = [row[: len(row) - 2 * number] for number, row in enumerate(ids)]
    load = functools.partial(ENGINES[contender.engine].load, Path(contender.path))
    try:
        return exactness(load, rows, contender.facts.pad_token_id or 0)
    except EngineError:  # a file that runs at the shapes that are timed, and not at others
        return None


def _shapes_for(
    contenders: Sequence[Contender], asked: Sequence[Shape]
) -> tuple[tuple[Shape, ...], str | None]:
    """Return the shapes asked for, or the default ones cut to what all models take; then say so."""
    known = [
        (contender.facts.max_length, contender)
        for contender in contenders
        if contender.facts.max_length is not None
    ]
    shapes = tuple(dict.fromkeys(asked or DEFAULT_SHAPES))
    if all(contender.facts.vocab_size is None and contender.facts.image for contender in contenders):
        size = "x".join(map(str, contenders[0].facts.image or ()))
        return cut(shapes, 1), f"Images of {size}: a shape is how many of them, and 1."
    if not known:
        return shapes, None
    limit, shortest = min(known, key=lambda pair: pair[0])
    too_long = next((shape for shape in shapes if shape.length > limit), None)
    if too_long is None:
        return shapes, None
    if asked:
        raise ConfigError(
            f"{too_long} is too long: {shortest.model} takes at most {counted(limit, 'token')}."
        )
    shortened = f"Sequences: cut to {counted(limit, 'token')}, the most that {shortest.model} takes."
    return cut(shapes, limit), shortened


def _fitting(loaded: Loaded, shapes: Sequence[Shape]) -> list[Shape]:
    fitting = [shape for shape in shapes if loaded.fits(shape)]
    if not fitting:
        batch, length = fixed_sizes(loaded.inputs)
        raise ConfigError(
            f"{loaded.contender} is made for inputs of {loaded.takes} alone, and none of "
            f"{', '.join(map(str, shapes))} is that: {spelled('shapes', '--shape')} "
            f"{Shape(batch or 1, length or 128)}"
        )
    return fitting


def _versions(loaded: Sequence[Loaded]) -> dict[str, str | None]:
    names = dict.fromkeys(candidate.contender.engine for candidate in loaded)
    return {name: torch.__version__ if name == TORCH else engine_of(name).version for name in names}


def _row(
    loaded: Loaded,
    shape: Shape,
    latency: Latency | None,
    baseline: Latency | None,
    footprint: Footprint,
    size: int,
) -> BenchmarkRow:
    contender = loaded.contender
    return BenchmarkRow(
        model=contender.model,
        engine=contender.engine,
        path=contender.path,
        shape=shape,
        p50_ms=None if latency is None else 1000 * latency.p50,
        p90_ms=None if latency is None else 1000 * latency.p90,
        p99_ms=None if latency is None else 1000 * latency.p99,
        sequences_per_s=None if latency is None else shape.batch / latency.p50,
        speedup=None if latency is None or baseline is None else baseline.p50 / latency.p50,
        load_s=footprint.load_seconds,
        size_mb=size / 1e6,
        memory_mb=None if footprint.memory is None else footprint.memory / 1e6,
        process_memory_mb=None if footprint.process_memory is None else footprint.process_memory / 1e6,
        note=f"takes {loaded.takes} alone" if latency is None else loaded.note,
    )
