"""Setting the quantizers' ranges from data, and adjusting them afterwards."""

from qdqpatch.calibration.adjust import clip_gelu, expand_amax, fuse_qkv, recalibrate_weights
from qdqpatch.calibration.collecting import collect
from qdqpatch.calibration.loop import calibrate, set_ranges
from qdqpatch.calibration.statistics import Statistics
from qdqpatch.data.batches import text_batches

__all__ = [
    "Statistics",
    "calibrate",
    "clip_gelu",
    "collect",
    "expand_amax",
    "fuse_qkv",
    "recalibrate_weights",
    "set_ranges",
    "text_batches",
]
