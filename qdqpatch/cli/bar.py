"""The bar of the commands that calibrate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdqpatch.cli.common import progress_bar
from qdqpatch.listening import CalibrationListener

if TYPE_CHECKING:
    from rich.console import Console

    from qdqpatch.calibration import Statistics


class CalibrationBar(CalibrationListener):
    """Shows how calibration goes on: one bar, which begins anew with each step.

    Attributes:
        statistics: What the quantizers saw.
    """

    statistics: Statistics

    def __init__(self, console: Console) -> None:
        self._bar = progress_bar(console)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> CalibrationBar:
        self._bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Begin a step."""
        self._bar.reset(self._task, total=None, description=text)

    def step(self, done: int, total: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=done, total=total)

    def collected(self, statistics: Statistics) -> None:
        """Keep what the quantizers saw."""
        self.statistics = statistics
