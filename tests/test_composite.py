"""Models made of BERTs: an encoder and a decoder, each with rules of its own."""

import copy
from pathlib import Path

import models
import pytest
import torch
from torch import nn
from transformers import (
    EncoderDecoderConfig,
    EncoderDecoderModel,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForCausalLM,
)

import qdqpatch

TOKENS = torch.tensor([[3, 5, 7, 9], [4, 6, 8, 10]])
INPUTS = {"input_ids": TOKENS, "decoder_input_ids": TOKENS}


@pytest.fixture
def composite() -> EncoderDecoderModel:
    config = EncoderDecoderConfig.from_encoder_decoder_configs(models.config(), models.config())
    torch.manual_seed(7)
    return EncoderDecoderModel(config).eval()


def test_both_parts_are_quantized_and_reverted(composite: EncoderDecoderModel) -> None:
    expected = composite(**INPUTS).logits
    before = models.snapshot(composite)
    qdqpatch.quantize(composite)
    assert composite.encoder.config._attn_implementation == "qdqpatch"
    assert composite.decoder.config._attn_implementation == "qdqpatch"
    assert not torch.equal(composite(**INPUTS).logits, expected)
    qdqpatch.dequantize(composite)
    assert torch.equal(composite(**INPUTS).logits, expected)
    assert models.snapshot(composite)["modules"] == before["modules"]
    parts = (composite, composite.encoder, composite.decoder)
    assert [part.config._attn_implementation for part in parts] == ["sdpa"] * 3


def test_plan_has_the_sites_of_both(composite: EncoderDecoderModel) -> None:
    paths = [site.path for site in qdqpatch.plan(composite).sites]
    assert sum(path.startswith("encoder.") for path in paths) == 2 * 10
    assert sum(path.startswith("decoder.bert.") for path in paths) == 2 * 17


def test_a_linear_between_the_parts_is_listed(composite: EncoderDecoderModel) -> None:
    composite.enc_to_dec_proj = nn.Linear(24, 24)
    (miss,) = [miss for miss in qdqpatch.plan(composite).misses if miss.path == "enc_to_dec_proj"]
    assert miss.reason == "it is outside the parts that there are rules for"


def test_a_part_without_rules_is_looked_at_too(composite: EncoderDecoderModel) -> None:
    with torch.device("meta"):
        decoder = RobertaPreLayerNormForCausalLM(RobertaPreLayerNormConfig(**models.CONFIG, is_decoder=True))
    composite.decoder = decoder
    found = qdqpatch.plan(composite)
    assert found.unknown == ("roberta-prelayernorm",)
    paths = [site.path for site in found.sites]
    assert sum(path.startswith("encoder.") for path in paths) == 2 * 10
    assert sum(path.startswith("decoder.roberta_prelayernorm.encoder.layer.") for path in paths) == 2 * 10


def test_overrides_reach_one_part(composite: EncoderDecoderModel) -> None:
    config = qdqpatch.QDQConfig(overrides={"decoder.encoder.*": False})
    plan = qdqpatch.plan(composite, config)
    assert {site.path.partition(".")[0] for site in plan.sites} == {"encoder"}


@pytest.mark.filterwarnings("ignore:Config of the (encoder|decoder):UserWarning")
def test_saved_and_loaded(composite: EncoderDecoderModel, tmp_path: Path) -> None:
    qdqpatch.calibrate(qdqpatch.quantize(composite), [INPUTS])
    expected = composite(**INPUTS).logits
    composite.save_pretrained(tmp_path)
    loaded, info = EncoderDecoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"]
    assert torch.equal(loaded.eval()(**INPUTS).logits, expected)


def test_configs_shared_with_another_model_stay_as_they_are(composite: EncoderDecoderModel) -> None:
    other = EncoderDecoderModel(composite.config).eval()
    before = copy.deepcopy(other.config.to_dict())
    qdqpatch.quantize(composite)
    assert other.config.to_dict() == before
    assert other.encoder.config._attn_implementation == "sdpa"
    assert composite.encoder.config is composite.config.encoder
