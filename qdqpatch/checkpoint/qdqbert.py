"""Checkpoints of the old QDQBERT classes (`model_type: "qdqbert"`, transformers up to 4.40.2).

transformers asks the config class registered for a model type to read a `config.json`; ours answers
with a BERT config that says it is quantized, and all the rest is the ordinary way of loading.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, PreTrainedModel

from qdqpatch.checkpoint.source import Checkpoint
from qdqpatch.choices import QDQBERT, QUANT_METHOD
from qdqpatch.config.config import QDQConfig
from qdqpatch.errors import CheckpointError, ConfigError, NotQuantizedError, UnsupportedModelError
from qdqpatch.nn.learned import update_ranges
from qdqpatch.output.folder import OutputFolder
from qdqpatch.patching.apply import check_whole, is_quantized, named_quantizers
from qdqpatch.patching.finite import check_finite
from qdqpatch.patching.guard import FIELD as GUARD
from qdqpatch.patching.hf_quantizer import NOT_SAVED
from qdqpatch.patching.input_scales import scaled_modules
from qdqpatch.patching.recorded import KEY
from qdqpatch.patching.sites import find_sites

ARCHITECTURES = (
    "QDQBertModel",
    "QDQBertLMHeadModel",
    "QDQBertForMaskedLM",
    "QDQBertForSequenceClassification",
    "QDQBertForNextSentencePrediction",
    "QDQBertForMultipleChoice",
    "QDQBertForTokenClassification",
    "QDQBertForQuestionAnswering",
)
"""The classes there were; each is a BERT class with three letters before its name."""

SPECIAL_TOKENS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
"""Defaults of `QDQBertConfig` that differ from BERT's."""

FILES = ("model.safetensors", "config.json")
"""What a checkpoint consists of."""

NOT_WRITTEN = ("quantization_config", KEY, GUARD, "transformers_version", "dtype", "_name_or_path")
"""What a config of today holds and the old class would not understand."""


def bert_config(config_dict: dict[str, Any], **kwargs: Any) -> Any:
    """Read the `config.json` of a QDQBERT as a `BertConfig` with a `quantization_config`.

    Raises:
        ConfigError: If the model has relative position embeddings, which BERT in transformers 5
            no longer computes.
    """
    return BertConfig.from_dict(_as_bert(config_dict), **kwargs)


def load_qdqbert(directory: str | Path, **kwargs: Any) -> PreTrainedModel:
    """Load a checkpoint that an original QDQBERT class wrote.

    The model is an instance of the BERT class of the same name and gives the same outputs.
    `AutoModelFor...from_pretrained(directory)` does the same, with a head of the caller's choice.

    Such a checkpoint does not say how many bits it was made for. As for the original classes, that is
    what the default descriptors on `QuantLinear` say, 8 unless they were set.

    Args:
        directory: A folder with `config.json` and `model.safetensors` or `pytorch_model.bin`.
        **kwargs: Passed on to `from_pretrained`, such as `dtype` or `device_map`.

    Raises:
        CheckpointError: If the folder does not hold a QDQBERT checkpoint, or not a whole one.
        ConfigError: If it has relative position embeddings.
    """
    path = Path(directory) / "config.json"
    try:
        config_dict = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}") from error
    model_type = config_dict.get("model_type") if isinstance(config_dict, dict) else None
    if model_type != QDQBERT:
        raise CheckpointError(
            f"{path} is that of a model of type {model_type!r}, not {QDQBERT!r}; load it with "
            "AutoModel...from_pretrained."
        )
    architecture = (config_dict.get("architectures") or ["QDQBertModel"])[0]
    model_class = getattr(transformers, architecture.removeprefix("QDQ"), None)
    if model_class is None or not architecture.startswith("QDQBert"):
        raise CheckpointError(
            f"{path} names the class {architecture}, not one of {', '.join(ARCHITECTURES)}."
        )
    config = bert_config(config_dict)
    source = Checkpoint(str(directory), config, model_class)
    return source.load(**kwargs)[0]


def save_qdqbert(model: PreTrainedModel, directory: str | Path) -> None:
    """Write a checkpoint that the original QDQBERT classes of transformers 4.40.2 load.

    Writes `model.safetensors` and `config.json`, which replace those of an earlier call, and
    `qdqpatch.json`, which tells these from a user's; files of other names in the folder stay.

    Args:
        model: A quantized BERT with QDQBERT's placement.
        directory: The folder; made if it is not there.

    Raises:
        NotQuantizedError: If the model is a float model.
        CheckpointError: If the model holds NaN or infinity, the folder cannot be written, or it has files of
            these names that `save_qdqbert` did not write. They stay as they are.
        UnsupportedModelError: If there was no QDQBERT class for this class.
        ConfigError: If the placement is not QDQBERT's, which its classes cannot be told.
    """
    architecture = _check_expressible(model)
    output = OutputFolder.open(directory, force=True, only=FILES)
    update_ranges(model)
    check_finite(model, f"This {type(model).__name__}", NOT_SAVED)
    config = {key: value for key, value in model.config.to_dict().items() if key not in NOT_WRITTEN}
    config |= {"model_type": QDQBERT, "architectures": [architecture]}
    config["torch_dtype"] = str(model.dtype).removeprefix("torch.")
    with output.staged() as staging:
        save_file(_untied(model.state_dict()), staging / FILES[0], {"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (staging / FILES[1]).write_text(text, encoding="utf-8")


def _as_bert(config_dict: Mapping[str, Any]) -> dict[str, Any]:
    position = config_dict.get("position_embedding_type", "absolute")
    if position != "absolute":
        raise ConfigError(
            f"This QDQBERT has position_embedding_type={position!r}, which BERT in transformers 5 no longer "
            'computes; only "absolute" can be loaded.'
        )
    bert = {**SPECIAL_TOKENS, **config_dict, "model_type": "bert"}
    names = bert.get("architectures") or []
    bert["architectures"] = [name.removeprefix("QDQ") for name in names] or None
    bert["quantization_config"] = {"quant_method": QUANT_METHOD}
    return bert


def _check_expressible(model: PreTrainedModel) -> str:
    """Return the name of the QDQBERT class, or raise because it could not hold the model."""
    if not is_quantized(model):
        raise NotQuantizedError("The model is a float model: call qdqpatch.quantize(model) first.")
    check_whole(model)
    if scaled := next(scaled_modules(model), None):
        raise ConfigError(
            f"{scaled[0]} multiplies the channels of its input (qdqpatch.calibration.smooth_inputs and "
            "smooth_residuals), which QDQBERT's classes do not compute."
        )
    if asymmetric := [path for path, quantizer in named_quantizers(model) if not quantizer.is_symmetric]:
        raise ConfigError(
            f"{asymmetric[0]} has a zero point, which QDQBERT's classes do not compute. Save it with "
            "save_pretrained instead."
        )
    architecture = f"QDQ{type(model).__name__}"
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(f"There was no class {architecture}, only {', '.join(ARCHITECTURES)}.")
    config: QDQConfig = model.config.quantization_config
    with torch.device("meta"):
        complete = find_sites(type(model)(model.config))
    there = {path for path, quantizer in named_quantizers(model) if quantizer.is_enabled}
    wanted = {f"{site.path}.{name}" for site in complete.sites for name in site.quantizers}
    differing = [*sorted(there ^ wanted), *(item.pattern for item in config.overrides)]
    if differing:
        raise ConfigError(
            "A QDQBERT checkpoint cannot say that its quantizers differ from QDQBERT's, and this model's do "
            f"in {_some(differing)}. Save it with save_pretrained instead."
        )
    if complete.config != config:
        warnings.warn(
            "A QDQBERT checkpoint does not hold how its quantizers round. Before loading it with the "
            "original classes, set the default descriptors on pytorch_quantization.nn.QuantLinear to "
            f"activation: {config.activation}; weight: {config.weight}.",
            stacklevel=3,
        )
    return architecture


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _untied(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep the first name of each tensor: tied ones are tied again on loading."""
    kept: dict[int, str] = {}
    for name, tensor in state_dict.items():
        kept.setdefault(tensor.data_ptr(), name)
    return {name: state_dict[name].contiguous() for name in kept.values()}
