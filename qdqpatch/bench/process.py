"""Load time and memory of one contender, measured in a process that does nothing else.

`alone` starts the process, `python -m qdqpatch.bench.process JOB`. There, the engine is imported, then the
model is loaded, which is timed, and run once; an exported file without torch and transformers. Others loaded
it before, so that its files are in the page cache and the disk does not count.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from qdqpatch.bench.loading import load
from qdqpatch.engines.contenders import TORCH, Contender, Facts, engine_of
from qdqpatch.engines.shapes import Shape
from qdqpatch.errors import EngineError, QdqError, one_line
from qdqpatch.patching.own_code import is_code_trusted, trusting_code


@dataclass(frozen=True)
class Footprint:
    """What a contender costs beside the time of its runs.

    Attributes:
        load_seconds: From the files to a model that can run.
        memory: Bytes: the largest resident set while loading and running, less what there was when the
            engine had been imported. None where the system does not tell.
        process_memory: Bytes: the largest resident set, with all that qdqpatch imports.
    """

    load_seconds: float
    memory: int | None
    process_memory: int | None


def alone(contender: Contender, threads: int, shape: Shape) -> Footprint:
    """Load a contender in a fresh process, and run it there once.

    Raises:
        EngineError: If that fails.
    """
    job = {
        "contender": dataclasses.asdict(contender),
        "threads": threads,
        "shape": str(shape),
        "trusted": is_code_trusted(),
    }
    command = [sys.executable, "-m", "qdqpatch.bench.process", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise EngineError(f"{contender} failed in a process of its own: {reason}")
    return Footprint(**json.loads(done.stdout.splitlines()[-1]))


def measure(contender: Contender, threads: int, shape: Shape) -> Footprint:
    """Load a contender in this process, and run it once."""
    if contender.engine == TORCH:
        from qdqpatch.checkpoint.source import open_checkpoint

        open_checkpoint(contender.path)  # imports the model's class
    else:
        importlib.import_module(engine_of(contender.engine).package)
    before = _resident("VmRSS")
    start = time.perf_counter()
    loaded = load(contender, threads)
    load_seconds = time.perf_counter() - start
    loaded.runner(shape)()
    peak = _resident("VmHWM")
    return Footprint(load_seconds, None if before is None or peak is None else max(peak - before, 0), peak)


def _threads(contender: Contender, threads: int) -> AbstractContextManager[None]:
    """Let torch use so many threads, if it is torch that runs: an exported file needs no torch here."""
    if contender.engine != TORCH:
        return nullcontext()
    from qdqpatch.engines.threads import torch_threads

    return torch_threads(threads)


def _resident(field: str) -> int | None:
    """Return the bytes of resident memory: VmRSS is what there is now, VmHWM the most there was.

    Not `ru_maxrss` where this can be read: on Linux that begins with what the parent process had.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition(f"{field}:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Measure what the argument describes, and print it as a line of JSON."""
    job = json.loads(sys.argv[1])
    contender = Contender(**job["contender"] | {"facts": Facts(**job["contender"]["facts"])})
    try:
        with _threads(contender, job["threads"]), trusting_code(job["trusted"]):
            footprint = measure(contender, job["threads"], Shape.parse(job["shape"]))
    except QdqError as error:
        sys.exit(one_line(error))
    print(json.dumps(dataclasses.asdict(footprint)))


if __name__ == "__main__":
    main()
