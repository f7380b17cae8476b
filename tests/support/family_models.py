"""A tiny model of every architecture that has rules, its inputs, and all its heads."""

import copy
import functools
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import qdqpatch

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
}
"""What most configurations call these."""

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IMAGES = {**SIZES, "image_size": 16, "patch_size": 8}
ROTATED = {**SIZES, "num_attention_heads": 2, "hidden_size": 32}
DECODER = {**ROTATED, **SPECIAL, "num_key_value_heads": 1, "head_dim": 8}
SMALL = {"embedding_size": 16}
DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
BOTH = {"text_config": {**SIZES, **SPECIAL}, "vision_config": IMAGES}
T5 = {"vocab_size": 60, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 3}
T5["decoder_start_token_id"] = 0
BART = {
    "vocab_size": 60,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 40,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "albert": {**SIZES, **SMALL},
    "bart": BART,
    "bert": SIZES,
    "camembert": SIZES,
    "clip": {**BOTH, "projection_dim": 16},
    "clip_text_model": {**SIZES, **SPECIAL},
    "clip_vision_model": IMAGES,
    "convbert": {**SIZES, "num_attention_heads": 4, "embedding_size": 24, "conv_kernel_size": 3},
    "data2vec-text": SIZES,
    "deberta": {**SIZES, **DEBERTA},
    "deberta-v2": {
        **SIZES,
        **DEBERTA,
        "position_buckets": 8,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
    },
    "deit": IMAGES,
    "dinov2": {**IMAGES, "mlp_ratio": 2},
    "distilbert": {
        "vocab_size": 60,
        "dim": 24,
        "n_layers": 2,
        "n_heads": 3,
        "hidden_dim": 40,
        "max_position_embeddings": 40,
    },
    "electra": {**SIZES, **SMALL},
    "ernie": SIZES,
    "esm": {**ROTATED, "position_embedding_type": "rotary", "pad_token_id": 1, "mask_token_id": 4},
    "esmc": {**ROTATED, "pad_token_id": 1},
    "eurobert": {**ROTATED, **SPECIAL, "num_key_value_heads": 2, "mask_token_id": 3},
    "gemma3_text": {**DECODER, "use_bidirectional_attention": True},
    "gte": ROTATED,
    "jina_embeddings_v3": ROTATED,
    "layoutlm": SIZES,
    "layoutlmv3": {
        **SIZES,
        "coordinate_size": 4,
        "shape_size": 4,
        "max_2d_position_embeddings": 40,
        "visual_embed": False,
        "has_spatial_attention_bias": True,
        "has_relative_attention_bias": True,
    },
    "lilt": {**SIZES, "channel_shrink_ratio": 2, "hidden_size": 48, "max_2d_position_embeddings": 40},
    "megatron-bert": SIZES,
    "mobilebert": {
        **SIZES,
        "embedding_size": 16,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intra_bottleneck_size": 16,
        "true_hidden_size": 16,
        "num_feedforward_networks": 2,
    },
    "modernbert": {
        **ROTATED,
        **SPECIAL,
        "cls_token_id": 1,
        "sep_token_id": 2,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
    },
    "mpnet": SIZES,
    "nomic_bert": ROTATED,
    "qwen3": DECODER,
    "rembert": {**SIZES, "input_embedding_size": 16, "output_embedding_size": 16},
    "roberta": SIZES,
    "roformer": {**ROTATED, "embedding_size": 32},
    "siglip": BOTH,
    "siglip_text_model": {**SIZES, **SPECIAL},
    "siglip_vision_model": IMAGES,
    "t5": T5,
    "tapas": SIZES,
    "visual_bert": SIZES,
    "vit": IMAGES,
    "xlm-roberta": SIZES,
    "xmod": {**SIZES, "languages": ["en_XX"], "default_language": "en_XX"},
}
FAMILIES = [family for family in CONFIGS if family in CONFIG_MAPPING]
"""The model types that the installed transformers has."""

BASES = {"t5": transformers.T5EncoderModel, "siglip_text_model": transformers.SiglipTextModel}
"""The classes of base models that no Auto class knows, or that are not the one meant here."""


def config(family: str, **changes: Any) -> Any:
    """Return the tiny configuration of a model type."""
    return AutoConfig.for_model(family, **{**CONFIGS[family], **changes})


LAYERS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "n_layers", "num_layers")
"""What configurations call the number of layers."""


def one_layer(family: str) -> dict[str, Any]:
    """Return what of a configuration leaves a single layer, or one of each of its two models."""
    given = CONFIGS[family]
    parts = {name: {**part, "num_hidden_layers": 1} for name, part in given.items() if isinstance(part, dict)}
    return {**parts, **{name: 1 for name in LAYERS if name in given}}


def build(family: str, model_class: Any = None, **changes: Any) -> PreTrainedModel:
    """Build a float model in eval mode whose matrices have entries of an order that keeps signals alive."""
    generator = torch.Generator().manual_seed(3)
    model_class = model_class or BASES.get(family, AutoModel)
    make = getattr(model_class, "from_config", model_class)
    model = make(config(family, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise if parameter.dim() > 1 else parameter + 0.1 * noise)
    return model


def float_model(family: str) -> PreTrainedModel:
    """Return a fresh float model, the same weights each time."""
    return copy.deepcopy(_shared(family, False))


def calibrated(family: str) -> PreTrainedModel:
    """Return a fresh quantized model with a range on every quantizer."""
    return copy.deepcopy(_shared(family, True))


@functools.cache
def _shared(family: str, quantized: bool) -> PreTrainedModel:
    if not quantized:
        return build(family)
    model = qdqpatch.quantize(float_model(family))
    return qdqpatch.calibrate(model, [inputs(model)], method="max")


def inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return arguments for a base model: three rows, of text two of them padded."""
    generator = torch.Generator().manual_seed(1)
    settings = getattr(model.config, "text_config", model.config)
    vision = getattr(model.config, "vision_config", model.config)
    images = {}
    if hasattr(vision, "image_size"):
        size = vision.num_channels, vision.image_size, vision.image_size
        images["pixel_values"] = torch.randn(3, *size, generator=generator)
        if vision is settings:
            return images
    tokens = torch.randint(5, settings.vocab_size, (3, 9), generator=generator)
    mask = torch.arange(9) < torch.tensor([[9], [7], [4]])
    padding = settings.pad_token_id if getattr(settings, "pad_token_id", None) is not None else 0
    batch = {"input_ids": tokens.where(mask, padding), "attention_mask": mask.long()}
    if settings.model_type in ("layoutlm", "layoutlmv3", "lilt"):
        corner = torch.randint(0, 30, (3, 9, 2), generator=generator)
        batch["bbox"] = torch.cat([corner, corner + 5], -1)
    return batch | images


def output(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the model's first output without gradients; of tokens, where they are no padding."""
    with torch.no_grad():
        values = model(**batch)[0]
    if "attention_mask" not in batch or "pixel_values" in batch:
        return values
    return values[batch["attention_mask"].bool()]


NOT_IN_AUTO = {
    "clip_text_model": ["CLIPTextModelWithProjection"],
    "clip_vision_model": ["CLIPVisionModelWithProjection"],
    "siglip_text_model": ["SiglipTextModel"],
    "visual_bert": [
        "VisualBertForMultipleChoice",
        "VisualBertForQuestionAnswering",
        "VisualBertForVisualReasoning",
        "VisualBertForRegionToPhraseAlignment",
    ],
}
"""Classes that no Auto class gives for a model type."""


def heads(family: str) -> dict[str, type[PreTrainedModel]]:
    """Return every class that transformers has for a model type, by its name."""
    found: dict[str, type[PreTrainedModel]] = {}
    kind = type(config(family))
    for name in NOT_IN_AUTO.get(family, ()):
        found[name] = getattr(transformers, name)
    for name, mapping in vars(modeling_auto).items():
        if name.endswith("_MAPPING") and not name.endswith("_NAMES") and kind in mapping:
            classes = mapping[kind]
            for head in classes if isinstance(classes, tuple) else (classes,):
                found[head.__name__] = head
    return found


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Run the test on every architecture."""
    return request.param
