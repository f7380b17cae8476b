"""Signals that end a command, as `kill`, `docker stop` and a closed terminal send: it cleans up first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let these signals raise `SystemExit` in the block, once: more of them do not stop the cleaning up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    default = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in default:
            signal.signal(number, _end)
        yield
    finally:
        for number in default:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)
