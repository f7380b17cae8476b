"""Run by a Python of its own, with optimum or FastEmbed: prints the vectors of texts as JSON.

Its arguments are the name of a function below, a folder, and the texts.
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"


def optimum(folder: str, texts: list[str]) -> list[list[float]]:
    """The first token's vector of optimum's model for ONNX Runtime."""
    from optimum.onnxruntime import ORTModelForFeatureExtraction
    from transformers import AutoTokenizer

    model = ORTModelForFeatureExtraction.from_pretrained(folder)
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    return model(**batch).last_hidden_state[:, 0].tolist()


def optimum_custom(folder: str, texts: list[str]) -> list[list[float]]:
    """The pooled vectors of optimum's model of any outputs."""
    from optimum.onnxruntime import ORTModelForCustomTasks
    from transformers import AutoTokenizer

    model = ORTModelForCustomTasks.from_pretrained(folder, file_name="model_quantized.onnx")
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    return model(**batch)["sentence_embedding"].tolist()


def fastembed(folder: str, texts: list[str]) -> list[list[float]]:
    """The pooled vectors of FastEmbed, which reads `onnx/model_quantized.onnx`."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model="local/int8",
        pooling=PoolingType.DISABLED,
        normalization=False,
        sources=ModelSource(hf="local/int8"),
        dim=10,
        model_file="onnx/model_quantized.onnx",
        output_name="sentence_embedding",
    )
    model = TextEmbedding("local/int8", specific_model_path=folder)
    return [vector.tolist() for vector in model.embed(texts)]


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).parent))
    _, name, folder, *texts = sys.argv
    print(json.dumps(globals()[name](folder, texts)))
