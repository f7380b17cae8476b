"""Setting the quantizers' ranges from data, and adjusting them afterwards."""

from qdqpatch.calibration.bias_correction import correct_biases
from qdqpatch.calibration.calibrate import calibrate, set_ranges
from qdqpatch.calibration.clipping import clip_gelu
from qdqpatch.calibration.collecting import collect
from qdqpatch.calibration.fusing import fuse_qkv
from qdqpatch.calibration.granularity import expand_amax
from qdqpatch.calibration.input_smoothing import smooth_inputs
from qdqpatch.calibration.ptq import ptq
from qdqpatch.calibration.refining import refine_ranges
from qdqpatch.calibration.residual_smoothing import smooth_residuals
from qdqpatch.calibration.shared_inputs import fuse_inputs
from qdqpatch.calibration.shifting import shift
from qdqpatch.calibration.smoothing import smooth
from qdqpatch.calibration.statistics import Statistics
from qdqpatch.calibration.tuning import tune
from qdqpatch.calibration.weight_rounding import round_weights
from qdqpatch.calibration.weights import recalibrate_weights
from qdqpatch.data.batches import text_batches
from qdqpatch.data.images import image_batches
from qdqpatch.patching.switch import switch_quantizers

__all__ = [
    "Statistics",
    "calibrate",
    "clip_gelu",
    "collect",
    "correct_biases",
    "expand_amax",
    "fuse_inputs",
    "fuse_qkv",
    "image_batches",
    "ptq",
    "recalibrate_weights",
    "refine_ranges",
    "round_weights",
    "set_ranges",
    "shift",
    "smooth",
    "smooth_inputs",
    "smooth_residuals",
    "switch_quantizers",
    "text_batches",
    "tune",
]
