"""Make transformers know our checkpoints, whichever of the two is imported first.

transformers asks two of its modules what reads a `config.json`. Each is told when it is imported, or at once
if it is there. What it is told imports the rest of this package when a checkpoint needs it, and not before:
so nothing of ours is imported while transformers is, which could make two threads wait for each other.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import wrapt

from qdqpatch import lazy
from qdqpatch.choices import QDQBERT, QUANT_METHOD


def register() -> None:
    """Make transformers know the quantization method and the old model type; again does no harm."""
    wrapt.register_post_import_hook(_register_quantizer, "transformers.quantizers.auto")
    wrapt.register_post_import_hook(_register_qdqbert, "transformers.models.auto.configuration_auto")


def _register_quantizer(module: ModuleType) -> None:
    auto: Any = import_module(module.__name__)  # where another thread is importing it, this waits for the end
    if QUANT_METHOD in auto.AUTO_QUANTIZER_MAPPING:
        return

    class Config(auto.QuantizationConfigMixin):  # type: ignore[misc]
        """Stands for `QDQConfig` until a config is read."""

        @classmethod
        def from_dict(cls, *arguments: Any, **named: Any) -> Any:
            return lazy.load("qdqpatch.config.config", "QDQConfig").from_dict(*arguments, **named)

    class Quantizer(auto.HfQuantizer):  # type: ignore[misc]
        """Stands for `QDQHfQuantizer` until a model is loaded."""

        def __new__(cls, *arguments: Any, **named: Any) -> Any:
            return lazy.load("qdqpatch.patching.hf_quantizer", "QDQHfQuantizer")(*arguments, **named)

    auto.register_quantization_config(QUANT_METHOD)(Config)
    auto.register_quantizer(QUANT_METHOD)(Quantizer)


def _register_qdqbert(module: ModuleType) -> None:
    auto: Any = import_module(module.__name__)
    if QDQBERT in auto.CONFIG_MAPPING:
        return

    class QDQBertConfig(auto.PreTrainedConfig):  # type: ignore[misc]
        """Reads the `config.json` of a QDQBERT as that of a quantized BERT."""

        model_type = QDQBERT

        @classmethod
        def from_dict(cls, *arguments: Any, **named: Any) -> Any:
            return lazy.load("qdqpatch.checkpoint.qdqbert", "bert_config")(*arguments, **named)

    auto.AutoConfig.register(QDQBERT, QDQBertConfig)
