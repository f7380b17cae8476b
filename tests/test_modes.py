"""A quantized model in every way that a BERT is used: attention, dtypes, devices, training, decoding."""

from pathlib import Path
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from qdqpatch import calibrate, dequantize, quantize
from qdqpatch.patching.apply import named_quantizers

LOW_PRECISION = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("state", ["uncalibrated", "calibrated"])
def test_the_attention_it_was_loaded_with_makes_no_difference(any_head: str, state: str) -> None:
    expected = models.outputs(getattr(models, state)(any_head), any_head, output_hidden_states=True)
    for implementation in ("eager", "sdpa"):
        model = quantize(models.build(any_head, attn_implementation=implementation))
        if state == "calibrated":
            calibrate(model, [models.inputs(any_head, seed) for seed in (2, 3)], "percentile")
        models.assert_equal(models.outputs(model, any_head, output_hidden_states=True), expected)


def test_padding_is_honoured(any_head: str, calibrated) -> None:
    model, batch = calibrated(any_head), models.inputs(any_head)
    hidden = batch["attention_mask"] == 0
    other = torch.where(hidden, 7, batch["input_ids"])
    assert not torch.equal(other, batch["input_ids"])
    before = models.outputs(model, any_head, output_hidden_states=True)
    after = models.outputs(model, any_head, output_hidden_states=True, input_ids=other)
    states = [name for name in before if name.startswith("hidden_states")]
    assert len(states) == 3
    for name in states:
        rows = hidden.reshape(-1, hidden.shape[-1])
        assert torch.equal(after[name][~rows], before[name][~rows]), name
        assert not torch.equal(after[name][rows], before[name][rows]), name


def test_hidden_encoder_states_are_hidden_from_cross_attention(calibrated) -> None:
    model, batch = calibrated(models.CROSS), models.inputs(models.CROSS)
    states = batch["encoder_hidden_states"].clone()
    states[batch["encoder_attention_mask"] == 0] = 0.5
    assert not torch.equal(states, batch["encoder_hidden_states"])
    expected = models.outputs(model, models.CROSS)["logits"]
    assert torch.equal(models.outputs(model, models.CROSS, encoder_hidden_states=states)["logits"], expected)


def test_a_decoder_does_not_look_ahead(calibrated) -> None:
    model, batch = calibrated("BertLMHeadModel"), models.inputs("BertLMHeadModel", padded=False)
    other = batch["input_ids"].clone()
    other[:, 5:] = 9
    with torch.no_grad():
        before, after = (
            model(**batch | {"input_ids": tokens}).logits for tokens in (batch["input_ids"], other)
        )
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_no_mask_and_a_mask_of_ones_are_the_same(any_head: str, calibrated) -> None:
    model, batch = calibrated(any_head), models.inputs(any_head, padded=False)
    without = {name: value for name, value in batch.items() if name != "attention_mask"}
    with torch.no_grad():
        models.assert_equal(models.flatten(model(**without)), models.flatten(model(**batch)))


def test_attentions_and_hidden_states_are_given(any_head: str, calibrated) -> None:
    model = calibrated(any_head)
    plain = models.outputs(model, any_head)
    full = models.outputs(model, any_head, output_hidden_states=True, output_attentions=True)
    models.assert_equal({name: full[name] for name in plain}, plain)
    rows, length = (6 if any_head == "BertForMultipleChoice" else 2), 8
    for layer in range(2):
        attention = full[f"attentions.{layer}"]
        assert attention.shape == (rows, 2, length, length)
        assert torch.allclose(attention.sum(-1), torch.ones(rows, 2, length), rtol=0, atol=2**-20)
    for index in range(3):
        assert full[f"hidden_states.{index}"].shape == (rows, length, 24)
    assert (f"cross_attentions.{1}" in full) == (any_head == models.CROSS)


def test_attentions_are_the_probabilities_before_their_quantizer(calibrated) -> None:
    model = calibrated()
    seen = record(model, "encoder.layer.0.attention.self.matmul_a_input_quantizer")
    attention = models.outputs(model, output_attentions=True)["attentions.0"]
    assert torch.equal(attention, seen[0])


def record(model: nn.Module, path: str) -> list[Tensor]:
    """Keep every input of a module."""
    seen: list[Tensor] = []
    model.get_submodule(path).register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[0].detach())
    )
    return seen


CASTS: dict[str, Any] = {
    "half": (torch.float16, lambda model: model.half()),
    "bfloat16": (torch.bfloat16, lambda model: model.bfloat16()),
    "to": (torch.bfloat16, lambda model: model.to(torch.bfloat16)),
}


@pytest.mark.parametrize(("dtype", "cast"), CASTS.values(), ids=CASTS)
def test_ranges_stay_fp32_and_outputs_follow_the_model(
    dtype: torch.dtype, cast: Any, any_head: str, calibrated
) -> None:
    model = calibrated(any_head)
    before = models.ranges(model)
    model = cast(model)
    models.assert_equal(models.ranges(model), before)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    batch = models.inputs(any_head)
    if "encoder_hidden_states" in batch:
        batch["encoder_hidden_states"] = batch["encoder_hidden_states"].to(dtype)
    outputs = models.outputs(model, any_head, **batch)
    assert {tensor.dtype for tensor in outputs.values()} == {dtype}
    assert all(tensor.isfinite().all() for tensor in outputs.values())


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
def test_ranges_stay_fp32_when_loaded_in_another_dtype(
    dtype: torch.dtype, any_head: str, calibrated, tmp_path: Path
) -> None:
    model = calibrated(any_head)
    model.save_pretrained(tmp_path)
    loaded = models.model_class(any_head).from_pretrained(tmp_path, dtype=dtype)
    models.assert_equal(models.ranges(loaded), models.ranges(model))
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    if any_head != models.CROSS:
        expected = models.outputs(model.to(dtype), any_head)
        models.assert_equal(models.outputs(loaded, any_head), expected)


@pytest.mark.parametrize(("dtype", "cast"), CASTS.values(), ids=CASTS)
def test_a_loaded_model_can_be_cast_too(dtype: torch.dtype, cast: Any, calibrated, tmp_path: Path) -> None:
    """transformers forbids it to models whose weights are packed integers."""
    model = calibrated()
    model.save_pretrained(tmp_path)
    loaded = cast(models.model_class("BertModel").from_pretrained(tmp_path))
    models.assert_equal(models.ranges(loaded), models.ranges(model))
    models.assert_equal(models.outputs(loaded), models.outputs(cast(model)))
    assert {parameter.dtype for parameter in loaded.float().parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
def test_a_model_in_half_precision_can_be_quantized_and_calibrated(dtype: torch.dtype, float_model) -> None:
    model = quantize(float_model().to(dtype))
    assert models.outputs(model)["last_hidden_state"].dtype == dtype
    calibrate(model, [models.inputs()])
    assert {quantizer.amax.dtype for _, quantizer in named_quantizers(model)} == {torch.float32}
    assert models.outputs(model)["last_hidden_state"].dtype == dtype


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
def test_every_quantizer_rounds_half_precision_once(dtype: torch.dtype, calibrated) -> None:
    """Inside a model: each quantizer's output is the fp32 result of the very same input, rounded once."""
    model = calibrated().to(dtype)
    checked = []

    def check(quantizer: nn.Module, arguments: tuple[Tensor], output: Tensor) -> None:
        assert output.dtype == dtype
        assert torch.equal(output, quantizer.forward(arguments[0].float()).to(dtype))
        checked.append(quantizer)

    for _, quantizer in named_quantizers(model):
        quantizer.register_forward_hook(check)
    models.outputs(model)
    assert len(checked) == len(dict(named_quantizers(model)))


def test_autocast_runs(calibrated) -> None:
    model = calibrated("BertForSequenceClassification")
    with torch.autocast("cpu", torch.bfloat16):
        logits = models.outputs(model, "BertForSequenceClassification")["logits"]
    assert logits.isfinite().all()


@pytest.mark.parametrize("path", ["bert.encoder.layer.0", "bert.encoder.layer.1"])
def test_dropout_on_probabilities_falls_before_their_quantizer(path: str) -> None:
    model = models.build("BertForMaskedLM", attention_probs_dropout_prob=0.9)
    quantize(model)
    seen = record(model, f"{path}.attention.self.matmul_a_input_quantizer")
    model.eval()(**models.inputs(padded=False))
    assert (seen.pop() > 0).all()
    torch.manual_seed(0)
    model.train()(**models.inputs(padded=False))
    zeros = (seen.pop() == 0).float().mean()
    assert 0.8 < zeros < 1


def test_dropout_of_hidden_states_falls_before_the_add() -> None:
    model = models.build(hidden_dropout_prob=0.9)
    quantize(model).train()
    local = record(model, "encoder.layer.0.output.add_local_input_quantizer")
    residual = record(model, "encoder.layer.0.output.add_residual_input_quantizer")
    model(**models.inputs())
    assert 0.8 < (local[0] == 0).float().mean() < 1
    assert (residual[0] == 0).float().mean() < 0.1


def test_train_and_eval_agree_without_dropout(any_head: str, calibrated) -> None:
    model = calibrated(any_head)
    expected = models.outputs(model, any_head)
    models.assert_equal(models.outputs(model.train(), any_head), expected)


def test_every_parameter_gets_a_gradient(any_head: str, calibrated) -> None:
    model, floating = calibrated(any_head), dequantize(calibrated(any_head))
    assert (
        models.gradients(model.train(), any_head).keys()
        == models.gradients(floating.train(), any_head).keys()
    )


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(
    use_reentrant: bool, any_head: str, calibrated
) -> None:
    model = calibrated(any_head).train()
    expected = models.gradients(model, any_head)
    # Newer transformers call it by another name.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": use_reentrant})
    calls = record_calls(model)
    models.assert_equal(models.gradients(model, any_head), expected)
    assert calls == [2] * len(calls)


def record_calls(model: nn.Module) -> list[int]:
    """Count how often each layer's last add ran."""
    calls: list[int] = []
    for path, module in model.named_modules():
        if path.endswith(
            ("layer.0.output.add_local_input_quantizer", "layer.1.output.add_local_input_quantizer")
        ):
            index = len(calls)
            calls.append(0)

            def count(*_: Any, index: int = index) -> None:
                calls[index] += 1

            module.register_forward_hook(count)
    assert len(calls) == 2
    return calls


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_chunked_feed_forward_gives_the_same_outputs(chunk: int, any_head: str, calibrated) -> None:
    model = calibrated(any_head)
    expected = models.outputs(model, any_head)
    for module in model.modules():
        if hasattr(module, "chunk_size_feed_forward"):
            module.chunk_size_feed_forward = chunk
    models.assert_equal(models.outputs(model, any_head), expected)


def generate(model: PreTrainedModel, name: str, use_cache: bool = True, **changes: Any) -> Any:
    """Continue a prompt of 4 tokens by 6, greedily unless `changes` say otherwise."""
    batch = models.inputs(name, length=4, padded=False)
    batch.pop("token_type_ids")
    if use_cache and name == models.CROSS:
        # generate() makes an EncoderDecoderCache only for models that are both encoder and decoder.
        own, cross = (DynamicCache(config=model.config) for _ in range(2))
        batch["past_key_values"] = EncoderDecoderCache(own, cross)
    model.generation_config.eos_token_id = None
    return model.generate(
        **batch | changes,
        use_cache=use_cache,
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )


@pytest.mark.parametrize("name", ["BertLMHeadModel", models.CROSS])
def test_generation_with_a_cache_is_generation_without(name: str, calibrated) -> None:
    model = calibrated(name)
    cached, plain = (generate(model, name, use_cache) for use_cache in (True, False))
    assert cached.past_key_values is not None
    assert plain.past_key_values is None
    assert cached.sequences.shape == (2, 10)
    assert torch.equal(cached.sequences, plain.sequences)
    for with_cache, without in zip(cached.scores, plain.scores, strict=True):
        assert torch.equal(with_cache, without)
    assert len({tuple(row) for row in cached.sequences.tolist()}) == 2


def test_generation_depends_on_the_encoder(calibrated) -> None:
    model = calibrated(models.CROSS)
    states = models.inputs(models.CROSS, length=4, padded=False)["encoder_hidden_states"]
    scores = [
        generate(model, models.CROSS, encoder_hidden_states=encoded).scores[-1]
        for encoded in (states, -states)
    ]
    assert not torch.equal(*scores)


@pytest.mark.parametrize("name", ["BertLMHeadModel", models.CROSS])
def test_beam_search_with_a_cache_is_beam_search_without(name: str, calibrated) -> None:
    """Beams reorder the cache; encoder states are repeated for them."""
    model = calibrated(name)
    cached, plain = (generate(model, name, use_cache, num_beams=3).sequences for use_cache in (True, False))
    assert cached.shape == (2, 10)
    assert torch.equal(cached, plain)
