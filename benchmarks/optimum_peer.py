"""What sentence-transformers makes of an embedder for ONNX Runtime: optimum's export, quantized dynamically.

    PYTHON benchmarks/optimum_peer.py CHECKPOINT FOLDER avx512_vnni|avx2

PYTHON is one of an environment with `tests/servers.txt`: optimum needs another transformers than ours. The
settings are those of sentence-transformers' `export_dynamic_quantized_onnx_model`, which calls the same.
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"


def main() -> None:
    """Export and quantize."""
    from optimum.onnxruntime import ORTModelForFeatureExtraction, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    checkpoint, folder, processor = sys.argv[1:]
    model = ORTModelForFeatureExtraction.from_pretrained(checkpoint, export=True)
    config = getattr(AutoQuantizationConfig, processor)(is_static=False)
    ORTQuantizer.from_pretrained(model).quantize(save_dir=folder, quantization_config=config)


if __name__ == "__main__":
    main()
