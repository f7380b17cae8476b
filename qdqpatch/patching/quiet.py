"""What exporters say about themselves, kept from the user, and one of them at a time."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_ALONE = threading.RLock()
"""torch traces one model at a time, and what is silenced here is so in the whole process."""


@contextmanager
def quiet_export() -> Iterator[None]:
    """Keep warnings about models, optional packages and the exporters' own future from the user.

    Other threads that come here wait.
    """
    with _ALONE:
        yield from _quiet()


def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
