"""OpenVINO tells its makers that it was imported and what it converted; not from here."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH, OFF = "CI", "true"
"""A variable that openvino_telemetry looks at: it sends nothing from a continuous integration job."""


class _Switch:
    """The variable, set while anyone needs it: threads that overlap leave it as the first one found it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before: str | None = None

    def take(self) -> None:
        with self._lock:
            if not self._users:
                self._before = os.environ.get(SWITCH)
                os.environ[SWITCH] = OFF
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
            if self._before is None:
                os.environ.pop(SWITCH, None)
            else:
                os.environ[SWITCH] = self._before


_SWITCH = _Switch()


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Keep OpenVINO from sending what it does while it is imported or converts a model.

    Each of some thirty messages for one model goes out of a fork of the whole process. That takes longer than
    converting a small model, waits where there is no network, and is unsafe beside threads.
    """
    _SWITCH.take()
    try:
        yield
    finally:
        _SWITCH.leave()
