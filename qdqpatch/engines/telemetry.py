"""OpenVINO tells its makers that it was imported and what it converted; not from here."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH, OFF = "CI", "true"
"""A variable that openvino_telemetry looks at: it sends nothing from a continuous integration job."""


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Keep OpenVINO from sending what it does while it is imported or converts a model.

    Each of some thirty messages for one model goes out of a fork of the whole process. That takes longer than
    converting a small model, waits where there is no network, and is unsafe beside threads.
    """
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = OFF
    try:
        yield
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before
