"""Bit for bit what the original QDQBERT classes compute; `reference/README.md` says how that was recorded."""

import models
import pytest
import reference_cases as reference
import torch
from transformers import BertForSequenceClassification
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

from qdqpatch import QDQConfig, quantize
from qdqpatch.nn.quantizer import TensorQuantizer

CLASSIFIER = "BertForSequenceClassification-calibrated"


@pytest.fixture(params=reference.NAMES)
def case(request: pytest.FixtureRequest) -> reference.Case:
    return reference.load(request.param)


@pytest.fixture(params=[name for name in reference.NAMES if name not in reference.CACHED])
def uncached(request: pytest.FixtureRequest) -> reference.Case:
    return reference.load(request.param)


@pytest.fixture(params=reference.CACHED)
def cached(request: pytest.FixtureRequest) -> reference.Case:
    return reference.load(request.param)


def test_there_is_a_case_for_every_head_and_variant() -> None:
    variants = {name.partition("-")[::2] for name in reference.NAMES}
    assert {(head, kind) for head in models.HEADS for kind in ("dynamic", "calibrated")} <= variants
    assert {kind for _, kind in variants} == {
        *("dynamic", "calibrated", "per_tensor_weights", "4bit_weights", "relu", "layers4", "no_mask"),
        *("cross_attention", "cache", "cross_attention_cache"),
    }


def test_the_state_dict_of_the_original_fits(case: reference.Case) -> None:
    model = quantize(getattr(models.transformers, case.metadata["head"])(case.config), case.recipe)
    result = model.load_state_dict(case.group("state"), strict=False)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    models.assert_equal(dict(model.state_dict()), case.group("state"))


def test_every_output_is_equal(uncached: reference.Case, arithmetic: str) -> None:
    model = uncached.model()
    with torch.no_grad():
        outputs = model(**uncached.inputs, output_hidden_states=True, output_attentions=True)
    flat = models.flatten(outputs)
    expected = uncached.group(f"output/{arithmetic}")
    assert any(name.startswith("hidden_states.") for name in expected)
    assert any(name.startswith("attentions.") for name in expected)
    flat.pop("loss", None)  # recorded in train mode only
    models.assert_equal(flat, expected)


def test_loss_and_every_gradient_are_equal(uncached: reference.Case, arithmetic: str) -> None:
    model = uncached.model().train()
    outputs = model(**uncached.inputs)
    probes = uncached.group("probe")
    loss = sum((outputs[name] * probe).sum() for name, probe in probes.items()) if probes else outputs.loss
    loss.backward()
    assert torch.equal(loss.detach(), uncached.tensors[f"loss/{arithmetic}"])
    named = model.named_parameters(remove_duplicate=False)
    gradients = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
    models.assert_equal(gradients, uncached.group(f"grad/{arithmetic}"))


@pytest.mark.parametrize("prepared", [False, True])
def test_every_step_of_cached_decoding_is_equal(
    cached: reference.Case, arithmetic: str, prepared: bool
) -> None:
    """Token by token on transformers' own cache, made by the model or handed to it."""
    model, inputs = cached.model(), cached.group("input")
    encoder = {name: value for name, value in inputs.items() if name.startswith("encoder_")}
    expected = cached.group(f"output/{arithmetic}")
    cache: Cache | None = None
    if prepared:
        own = [DynamicCache(config=model.config) for _ in range(2)]
        cache = EncoderDecoderCache(*own) if encoder else own[0]
    steps = {}
    for step in range(len(expected)):
        start, stop = (reference.PROMPT + step - 1 if step else 0), reference.PROMPT + step
        with torch.no_grad():
            outputs = model(
                inputs["input_ids"][:, start:stop],
                token_type_ids=inputs["token_type_ids"][:, start:stop],
                attention_mask=inputs["attention_mask"][:, :stop],
                past_key_values=cache,
                use_cache=True,
                **encoder,
            )
        cache = outputs.past_key_values
        steps[f"step.{step}.logits"] = outputs.logits
    assert isinstance(cache, EncoderDecoderCache if encoder else DynamicCache)
    models.assert_equal(steps, expected)


@pytest.mark.parametrize("chunk", [2, 5])
def test_chunked_feed_forward_is_equal(chunk: int, arithmetic: str) -> None:
    case = reference.load(CLASSIFIER)
    model = case.model(chunk_size_feed_forward=chunk)
    assert model.bert.encoder.layer[0].chunk_size_feed_forward == chunk
    with torch.no_grad():
        outputs = model(**case.inputs, output_hidden_states=True, output_attentions=True)
    flat = models.flatten(outputs)
    flat.pop("loss")
    models.assert_equal(flat, case.group(f"output/{arithmetic}"))


def test_the_arithmetics_were_recorded_apart(uncached: reference.Case) -> None:
    """Else the tests above could not tell one from the other."""
    toolkit, native = (uncached.group(f"output/{kind}") for kind in ("toolkit", "fb"))
    assert any(not torch.equal(toolkit[name], native[name]) for name in toolkit)


@pytest.mark.parametrize("setting", ["matmuls", "residual_adds", "linears"])
def test_each_part_is_needed_for_equality(setting: str) -> None:
    case = reference.load(CLASSIFIER)
    model = BertForSequenceClassification(case.config)
    quantize(model, QDQConfig(**{setting: False}))
    model.load_state_dict(case.group("state"), strict=False)
    with torch.no_grad():
        logits = model.eval()(**case.inputs).logits
    assert not torch.equal(logits, case.tensors["output/toolkit/logits"])


def test_the_default_arithmetic_is_the_toolkits() -> None:
    assert TensorQuantizer.use_fb_fake_quant is False
