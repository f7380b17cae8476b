"""Who is told how long work goes on: progress bars, and whoever else wants to know."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qdqpatch.calibration.statistics import Statistics


class CalibrationListener:
    """Is told how calibration goes on; this one ignores it."""

    def say(self, text: str) -> None:
        """Take what the step that begins does, such as `"Shifting"`."""

    def step(self, done: int, total: int) -> None:
        """Take how many batches of the step are done, and of how many; 0 if that is not known."""

    def collected(self, statistics: Statistics) -> None:
        """Take what the quantizers saw, which can be saved and searched again."""


class TrainingListener(CalibrationListener):
    """Is told how a job goes on, its calibration included; this one ignores it."""

    def warn(self, text: str) -> None:
        """Take what a user should know though the job goes on."""

    def step(self, done: int, total: int, loss: float | None = None) -> None:
        """Take how far that step is."""
