"""Setting the quantizers' ranges from data."""

from qdqpatch.calibration.loop import calibrate

__all__ = ["calibrate"]
