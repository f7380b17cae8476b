"""Turn any Hugging Face BERT into a QDQBERT: int8 quantizers where an int8 engine needs them."""

from typing import TYPE_CHECKING

from qdqpatch import lazy
from qdqpatch.patching import registration

if TYPE_CHECKING:
    from qdqpatch.calibration.calibrate import calibrate
    from qdqpatch.calibration.ptq import ptq
    from qdqpatch.checkpoint.qdqbert import load_qdqbert, save_qdqbert
    from qdqpatch.config.config import QDQConfig
    from qdqpatch.config.quantizer import Override, QuantizerConfig
    from qdqpatch.errors import QdqError
    from qdqpatch.exporter.export import export
    from qdqpatch.optimizing.optimize import optimize
    from qdqpatch.patching.audit import audit
    from qdqpatch.patching.quantize import dequantize, plan, quantize
else:
    __getattr__ = lazy.attributes(
        __name__,
        {
            "Override": "config.quantizer",
            "QDQConfig": "config.config",
            "QdqError": "errors",
            "QuantizerConfig": "config.quantizer",
            "audit": "patching.audit",
            "calibrate": "calibration.calibrate",
            "dequantize": "patching.quantize",
            "export": "exporter.export",
            "load_qdqbert": "checkpoint.qdqbert",
            "optimize": "optimizing.optimize",
            "plan": "patching.quantize",
            "ptq": "calibration.ptq",
            "quantize": "patching.quantize",
            "save_qdqbert": "checkpoint.qdqbert",
        },
    )

__version__ = "0.1.0"

__all__ = [
    "Override",
    "QDQConfig",
    "QdqError",
    "QuantizerConfig",
    "__version__",
    "audit",
    "calibrate",
    "dequantize",
    "export",
    "load_qdqbert",
    "optimize",
    "plan",
    "ptq",
    "quantize",
    "save_qdqbert",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


registration.register()
