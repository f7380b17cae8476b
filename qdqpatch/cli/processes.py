"""Commands that several processes run together, as `torchrun` and `accelerate launch` start them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout

import click

TOGETHER = ("convert", "eval", "optimize", "sensitivity", "train")
"""The commands whose data several processes can share."""

FAILED = "qdqpatch/failed"
"""Where the processes count those of them that failed."""


@contextmanager
def joined(command: str | None) -> Iterator[None]:
    """Let the processes of one launch meet, and the first one speak for all.

    Each takes its share of the data, and the first one writes. If one fails, it says why, and all end with 1.
    Without a launcher nothing is done.

    Args:
        command: What they are to do.

    Raises:
        UsageError: If that is not for several processes, in the first of them; the others end in silence.
        ClickException: If they do not find each other.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) < 2 or "RANK" not in os.environ:
        yield
        return
    if command not in TOGETHER:
        if os.environ["RANK"] != "0":
            raise SystemExit(2)
        raise click.UsageError(
            f"{command} runs in one process: start it without the launcher. Several can share the work of "
            f"{', '.join(TOGETHER)}."
        )
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    from qdqpatch.errors import ProcessError, one_line

    # Imported later, as torch's exporter does, it would keep the group that there is then as a default of its
    # functions: gloo's threads would still be there when the process ends, which aborts one in fifteen.
    importlib.import_module("torch.distributed.nn.functional")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or 0) % torch.cuda.device_count())
    try:
        store, rank, processes = next(rendezvous("env://"))
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=processes)
        if backend == "gloo":
            dist.barrier()  # one that left before the others are connected would end them with an error
    except (RuntimeError, ValueError) as error:
        raise click.ClickException(f"The processes do not find each other: {one_line(error)}") from error
    try:
        with _silence() if rank else nullcontext():
            yield
    except click.exceptions.Exit:
        dist.destroy_process_group()
        raise
    except BaseException as error:
        if isinstance(error.__cause__, ProcessError) or not _is_first_to_fail(store):
            raise SystemExit(1) from None
        raise
    dist.destroy_process_group()


def _is_first_to_fail(store: object) -> bool:
    """Return whether no other process failed before this one, which therefore says what is wrong."""
    try:
        failed: int = store.add(FAILED, 1)  # type: ignore[attr-defined]  # torch does not declare it
    except RuntimeError:  # the process that held it is gone
        return False
    return failed == 1


@contextmanager
def _silence() -> Iterator[None]:
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        yield
