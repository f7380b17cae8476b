import math

import pytest
import torch
from pytorch_quantization.tensor_quant import QuantDescriptor
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.bert.modeling_bert import eager_attention_forward

from qdqpatch.errors import UnsupportedModelError
from qdqpatch.nn.attention import IMPLEMENTATION, qdq_attention
from qdqpatch.nn.quantizer import TensorQuantizer

OPERANDS = "qkav"


class Recorder(nn.Module):
    """Stands in for a quantizer: keeps what it sees and gives back twice as much."""

    def forward(self, values: Tensor) -> Tensor:
        self.seen = values
        return 2 * values


def module(**quantizers: nn.Module) -> nn.Module:
    """Return an attention module in eval mode with the given quantizers by operand."""
    attention = nn.Module().eval()
    for operand, quantizer in quantizers.items():
        attention.add_module(f"matmul_{operand}_input_quantizer", quantizer)
    return attention


@pytest.fixture
def operands() -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value: 2 rows, 3 heads, 4 queries, 5 keys, 12 features."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 3, length, 12, generator=generator) for length in (4, 5, 5))


def mask() -> Tensor:
    hidden = torch.zeros(2, 1, 1, 5)
    hidden[1, ..., 3:] = torch.finfo(torch.float32).min
    return hidden


def test_both_functions_are_registered() -> None:
    assert AttentionInterface()[IMPLEMENTATION] is qdq_attention
    assert AttentionMaskInterface()[IMPLEMENTATION] is eager_mask


@pytest.mark.parametrize("masked", [False, True])
def test_without_quantizers_it_is_attention(operands, masked: bool) -> None:
    attention_mask = mask() if masked else None
    context, probabilities = qdq_attention(module(), *operands, attention_mask)
    expected, expected_probabilities = eager_attention_forward(module(), *operands, attention_mask)
    assert context.shape == expected.shape == (2, 4, 3, 12)
    # Dividing by the root and multiplying with its inverse differ in the last bit.
    torch.testing.assert_close(context, expected, rtol=0, atol=2**-20)
    torch.testing.assert_close(probabilities, expected_probabilities, rtol=0, atol=2**-20)
    if masked:
        assert (probabilities[1, ..., 3:] == 0).all()


def test_each_operand_goes_through_its_quantizer(operands) -> None:
    query, key, value = operands
    recorders = {operand: Recorder() for operand in OPERANDS}
    context, probabilities = qdq_attention(module(**recorders), *operands, mask())
    scores = (2 * query) @ (2 * key).transpose(2, 3) / math.sqrt(12) + mask()
    assert torch.equal(probabilities, scores.softmax(-1))
    assert torch.equal(context, ((2 * probabilities) @ (2 * value)).transpose(1, 2))
    assert torch.equal(recorders["q"].seen, query)
    assert torch.equal(recorders["k"].seen, key.transpose(2, 3))
    assert torch.equal(recorders["v"].seen, value)
    assert recorders["a"].seen is probabilities


@pytest.mark.parametrize("operand", OPERANDS)
def test_an_operand_without_a_quantizer_stays_float(operands, operand: str) -> None:
    quantizers = {operand: TensorQuantizer(QuantDescriptor(num_bits=3)) for operand in OPERANDS}
    all_of_them, _ = qdq_attention(module(**quantizers), *operands, None)
    quantizers[operand] = nn.Identity()
    as_identity, _ = qdq_attention(module(**quantizers), *operands, None)
    del quantizers[operand]
    without, _ = qdq_attention(module(**quantizers), *operands, None)
    assert torch.equal(without, as_identity)
    assert not torch.equal(without, all_of_them)


def test_the_models_own_scaling_is_division_by_the_root(operands) -> None:
    same = [qdq_attention(module(), *operands, None, scaling=scaling)[1] for scaling in (None, 12**-0.5)]
    assert torch.equal(*same)


def test_another_scaling_is_a_factor(operands) -> None:
    query, key, _ = operands
    _, probabilities = qdq_attention(module(), *operands, None, scaling=0.3)
    assert torch.equal(probabilities, (query @ key.transpose(2, 3) * 0.3).softmax(-1))


def test_dropout_falls_before_the_quantizer_and_only_in_training(operands) -> None:
    recorder = Recorder()
    attention = module(a=recorder)
    _, probabilities = qdq_attention(attention, *operands, None, dropout=0.5)
    assert (recorder.seen > 0).all()
    torch.manual_seed(0)
    _, dropped = qdq_attention(attention.train(), *operands, None, dropout=0.5)
    assert 0 < (recorder.seen == 0).sum() < recorder.seen.numel()
    assert torch.equal(dropped, torch.where(recorder.seen == 0, 0, 2 * probabilities))


def test_arguments_whose_effect_is_in_the_mask_or_the_operands_change_nothing(operands) -> None:
    plain, _ = qdq_attention(module(), *operands, mask())
    known = {
        "is_causal": True,
        "sliding_window": 2,
        "output_attentions": True,
        "position_ids": torch.arange(4),
    }
    assert torch.equal(qdq_attention(module(), *operands, mask(), **known)[0], plain)


def test_a_bias_is_added_after_the_quantizers_and_a_cap_comes_before_it(operands) -> None:
    query, key, _ = operands
    bias = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    recorder = Recorder()
    _, probabilities = qdq_attention(
        module(k=recorder), *operands, mask(), scaling=0.3, position_bias=bias, softcap=0.8
    )
    scores = torch.tanh(query @ (2 * key.transpose(2, 3)) * 0.3 / 0.8) * 0.8
    assert torch.equal(probabilities, (scores + bias + mask()).softmax(-1))
    assert torch.equal(recorder.seen, key.transpose(2, 3))


def test_heads_of_keys_and_values_that_queries_share_are_quantized_once(operands) -> None:
    query, key, value = operands
    recorders = {operand: Recorder() for operand in "kv"}
    shared = key[:, :1], value[:, :1]
    context, _ = qdq_attention(module(**recorders), query, *shared, None)
    assert recorders["k"].seen.shape[1] == recorders["v"].seen.shape[1] == 1
    repeated = [tensor.repeat_interleave(3, dim=1) for tensor in shared]
    expected, _ = qdq_attention(module(k=Recorder(), v=Recorder()), query, *repeated, None)
    assert torch.equal(context, expected)


def test_a_window_as_long_as_the_keys_needs_no_mask(operands) -> None:
    expected, _ = qdq_attention(module(), *operands, None)
    assert torch.equal(qdq_attention(module(), *operands, None, sliding_window=5)[0], expected)
    with pytest.raises(UnsupportedModelError, match="passes sliding_window"):
        qdq_attention(module(), *operands, None, sliding_window=4)


def test_a_mask_of_bool_says_what_is_seen(operands) -> None:
    """As SDPA takes it; the same as what transformers makes of a mask of two dimensions."""
    half = tuple(operand.to(torch.bfloat16) for operand in operands)
    for query, key, value in (operands, half):
        hidden = mask().to(query.dtype).clamp_min(torch.finfo(query.dtype).min)
        expected, _ = qdq_attention(module(), query, key, value, hidden)
        assert torch.equal(qdq_attention(module(), query, key, value, mask() == 0)[0], expected)


def test_sinks_take_their_share_of_the_probabilities(operands) -> None:
    query, key, value = operands
    sinks = torch.tensor([0.5, -1.0, 40.0])
    context, probabilities = qdq_attention(module(), query, key, value, mask(), s_aux=sinks)
    scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) + mask()
    weights = torch.cat([scores.exp(), sinks.exp().view(1, 3, 1, 1).expand(*scores.shape[:-1], 1)], -1)
    # Both ways of a softmax, in fp32.
    torch.testing.assert_close(probabilities, (weights / weights.sum(-1, keepdim=True))[..., :-1])
    assert torch.equal(context, (probabilities @ value).transpose(1, 2))


@pytest.mark.parametrize(
    "arguments",
    [
        {"sinks": torch.zeros(3)},
        {"is_causal": True},
        {"sliding_window": 2},
        {"cu_seq_lens_q": torch.arange(3)},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_what_is_not_known_is_refused(arguments: dict[str, object], operands) -> None:
    (name,) = arguments
    with pytest.raises(UnsupportedModelError, match=rf"Module passes {name} to its attention.*matmuls=False"):
        qdq_attention(module(), *operands, None, **arguments)
