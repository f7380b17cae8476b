"""Tiny models of types that have no table, whose structure decides."""

from typing import Any

import torch
import transformers
from family_models import BART, DECODER, IMAGES, SIZES, SPECIAL, T5
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

WIDE = {**SIZES, "hidden_size": 32, "num_attention_heads": 4}
SOUND = {
    **WIDE,
    "conv_dim": [8, 8],
    "conv_stride": [5, 4],
    "conv_kernel": [10, 8],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
WINDOWS = {
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 4],
    "window_size": 2,
    "image_size": 32,
    "patch_size": 4,
}
STAGES = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_attention_heads": [1, 2], "sr_ratios": [2, 1]}
XLM = {"n_words": 60, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 40, **SPECIAL}
CONFIGS: dict[str, dict[str, Any]] = {
    "audio-spectrogram-transformer": {
        **WIDE,
        "max_length": 32,
        "num_mel_bins": 16,
        "patch_size": 4,
        "frequency_stride": 4,
        "time_stride": 4,
    },
    "beit": {**WIDE, "image_size": 16, "patch_size": 8, "use_relative_position_bias": True},
    "bert-generation": SIZES,
    "big_bird": {**WIDE, "attention_type": "original_full"},
    "bloom": {"vocab_size": 60, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "bros": {**SIZES, "hidden_size": 64, "num_attention_heads": 4},
    "canine": {**WIDE, "local_transformer_stride": 4, "num_hash_buckets": 64, "downsampling_rate": 2},
    "data2vec-vision": {**WIDE, "image_size": 16, "patch_size": 8, "use_relative_position_bias": True},
    "dinov2_with_registers": {**IMAGES, "mlp_ratio": 2},
    "dinov3_vit": {**WIDE, "image_size": 16, "patch_size": 8, "num_register_tokens": 2},
    "dpr": SIZES,
    "flaubert": XLM,
    "fnet": SIZES,
    "funnel": {
        "vocab_size": 60,
        "block_sizes": [1, 1],
        "block_repeats": [1, 1],
        "num_decoder_layers": 1,
        "d_model": 32,
        "n_head": 4,
        "d_head": 8,
        "d_inner": 40,
    },
    "gemma2": DECODER,
    "gpt2": {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, **SPECIAL},
    "gpt_neox": {**WIDE, **SPECIAL},
    "hiera": {
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "masked_unit_size": [2, 2],
        "num_query_pool": 1,
        "image_size": [32, 32],
        "patch_size": [3, 3],
        "patch_stride": [4, 4],
        "patch_padding": [1, 1],
        "query_stride": [2, 2],
    },
    "hubert": SOUND,
    "ibert": WIDE,
    "ijepa": IMAGES,
    "led": {
        **BART,
        "d_model": 32,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "attention_window": [4, 4],
    },
    "llama": DECODER,
    "longformer": {**WIDE, "attention_window": [4, 4]},
    "longt5": {**T5, "local_radius": 3},
    "luke": {**WIDE, "entity_vocab_size": 20, "entity_emb_size": 16},
    "markuplm": {**WIDE, "max_depth": 6, "xpath_unit_hidden_size": 8},
    "mbart": BART,
    "mistral": DECODER,
    "mobilevitv2": {"image_size": 64, "base_attn_unit_dims": [16, 24, 32], "n_attn_blocks": [1, 1, 1]},
    "modernbert-decoder": {**WIDE, **SPECIAL, "local_attention": 8, "global_attn_every_n_layers": 2},
    "mt5": T5,
    "nystromformer": {**WIDE, "segment_means_seq_len": 10, "num_landmarks": 10, "conv_kernel_size": 3},
    "openai_privacy_filter": {**DECODER, "num_local_experts": 2, "num_experts_per_tok": 1},
    "perceiver": {
        "num_latents": 8,
        "d_latents": 32,
        "d_model": 32,
        "num_blocks": 1,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
    },
    "prophetnet": {
        "vocab_size": 60,
        "hidden_size": 32,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
        "encoder_ffn_dim": 40,
        "decoder_ffn_dim": 40,
    },
    "qwen2": DECODER,
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": (4, 4),
        "axial_pos_embds_dim": (16, 16),
        "feed_forward_size": 40,
        "attention_head_size": 8,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 2,
        "hidden_size": 32,
        "vocab_size": 60,
        "num_attention_heads": 4,
    },
    "roberta-prelayernorm": SIZES,
    "roc_bert": {**WIDE, "enable_pronunciation": False, "enable_shape": False},
    "segformer": {
        **STAGES,
        "num_encoder_blocks": 2,
        "mlp_ratios": [2, 2],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "decoder_hidden_size": 16,
    },
    "siglip2_vision_model": {**WIDE, "patch_size": 8, "num_patches": 16},
    "splinter": SIZES,
    "squeezebert": {**WIDE, "embedding_size": 32},
    "swin": WINDOWS,
    "swinv2": {**WINDOWS, "pretrained_window_sizes": [0, 0]},
    "umt5": T5,
    "vilt": {**WIDE, "image_size": 16, "patch_size": 8},
    "vit_mae": IMAGES,
    "vit_msn": IMAGES,
    "vitdet": {**IMAGES, "use_relative_position_embeddings": True, "window_size": 2},
    "wav2vec2": SOUND,
    "wav2vec2-conformer": SOUND,
    "wavlm": SOUND,
    "whisper": {**BART, "num_mel_bins": 16, "max_source_positions": 20, **SPECIAL},
    "xlm": XLM,
    "xlm-roberta-xl": SIZES,
    "xlnet": {"vocab_size": 60, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 40},
    "yoso": WIDE,
}
TYPES = [name for name in CONFIGS if name in CONFIG_MAPPING]
"""Those that the installed transformers has."""

CLASSES = {
    "funnel": "FunnelModel",
    "longt5": "LongT5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
}
"""The classes of base models that `AutoModel` does not give, or that are not the ones meant here."""


def on_no_device(name: str) -> PreTrainedModel:
    """Return a base model whose tensors hold nothing."""
    config = AutoConfig.for_model(name, **CONFIGS[name])
    with torch.device("meta"):
        if name in CLASSES:
            return getattr(transformers, CLASSES[name])(config)
        return AutoModel.from_config(config)
