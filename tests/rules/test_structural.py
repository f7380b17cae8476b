"""What the structure of a model shows that no table has: layers made for the purpose."""

from typing import Any

import pytest
import torch
from own_models import Layer, Own
from torch import Tensor, nn

import qdqpatch
from qdqpatch.patching.plan import Plan


class Scored(Layer):
    """Adds a bias that holds the mask to its scores, as LongT5 does."""

    def forward(self, states: Tensor, attention_mask: Tensor | None = None, bias: Any = None) -> Tensor:
        scores = torch.einsum("bqd,bkd->bqk", self.query(states), self.key(states))
        if bias is None:
            bias = torch.zeros(1, 1, scores.shape[-1], device=scores.device)
            bias = bias + attention_mask
        scores += bias
        return torch.einsum("bqk,bkd->bqd", scores.softmax(-1), self.dense(states))


class Masked(Layer):
    """Adds a mask in a way that nothing but the softmax behind it tells from a residual."""

    def forward(self, states: Tensor, hidden: Tensor | None = None) -> Tensor:
        scores = self.query(states) + hidden
        return nn.Softmax(dim=-1)(scores) * self.dense(states)


class Biased(Layer):
    """Adds a bias of relative positions to the mask, as BEiT does."""

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        attention_mask = self.key(torch.ones(states.shape[1], 4)) + attention_mask
        return states + self.dense(self.query(states) * attention_mask)


class Cast(Layer):
    """Adds in fp32, and moves what it adds."""

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states = states.float()
        return self.dense(states) + states.to(self.dense.weight.device)


class Counting(Layer):
    """Adds numbers that shapes have."""

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        batch, length = states.shape[:2]
        length = length + max(batch, length) % 2
        return states + self.dense(states)[:, :length]


class Parallel(Layer):
    """Has an add in a branch that its own setting turns off, as GPT-NeoX does."""

    def __init__(self) -> None:
        super().__init__()
        self.parallel = False
        self.gate = None

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if self.gate is not None and self.training:
            states = states + self.gate(states)
        if self.parallel:
            return states + self.dense(states) + self.query(states)
        return states + self.dense(states)


class OneOf(Layer):
    """Adds to what may be its input, or may have been computed, as Hiera does."""

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        local = self.query(states)
        if attention_mask is not None:
            states = self.key(states)
        return states + self.dense(local)


@pytest.mark.parametrize(
    ("layer", "adds"),
    [
        (Layer, ["residual add"]),
        (Scored, []),
        (Masked, []),
        (Biased, ["residual add"]),
        (Cast, ["residual add"]),
        (Counting, ["residual add"]),
        (Parallel, ["residual add 2"]),
        (OneOf, ["residual add"]),
    ],
)
def test_residual_adds_are_told_from_others(layer: type[nn.Module], adds: list[str]) -> None:
    found = qdqpatch.plan(Own(layer))
    assert [site.operation for site in found.sites if site.path == "layers.1"] == adds


def test_what_a_setting_turns_off_is_no_gap() -> None:
    with pytest.warns(qdqpatch.errors.QuantizationWarning, match="no rules for own"):
        model = qdqpatch.quantize(Own(Parallel), qdqpatch.QDQConfig(linears=False))
    qdqpatch.calibrate(model, [{"states": torch.randn(2, 3, 4)}], method="max")
    assert model(torch.randn(2, 3, 4))[0].isfinite().all()


def add_dropped(local: Tensor, residual: Tensor, dropout: float) -> Tensor:
    local = nn.functional.dropout(local, dropout)
    return residual + local


class InFunction(Layer):
    """Adds in a function of its file, as BLOOM does."""

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return add_dropped(self.dense(states), states, 0.0)


class InMethod(Layer):
    """Adds in another method, as XLNet does."""

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.finish(torch.einsum("bqd,de->bqe", states, self.dense.weight), states)

    def finish(self, local: Tensor, residual: Tensor) -> Tensor:
        return self.query(local) + residual


class AtOnce(Layer):
    """Has its attention computed in one call."""

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return nn.functional.scaled_dot_product_attention(self.query(states), self.key(states), states)


class Operator(Layer):
    """Multiplies by an operator."""

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.query(states) @ self.dense(states).transpose(1, 2) @ states


class Product(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, first: Tensor, second: Tensor) -> Tensor:
        return torch.bmm(first, second.transpose(1, 2))


class Differentiated(Layer):
    """Multiplies in a function that torch differentiates by a rule of its own, as YOSO does."""

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return Product.apply(self.query(states), self.key(states))


class Further(Layer):
    """Has a product beside the two of attention, as BROS does."""

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        query = self.query(states)
        scores = torch.matmul(query, self.key(states).transpose(1, 2))
        scores = scores + torch.einsum("bqd,kd->bqk", query, states[0])
        return torch.matmul(nn.Softmax(dim=-1)(scores), states)


class WeightRead(Layer):
    """Reads the weight of a Linear, and does not call it, as WavLM does."""

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return nn.functional.linear(self.query(states), self.dense.weight)


class OfItsOwn(Layer):
    """Computes a bias from a table of its own, as Swin v2 does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(3, 4))

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.query(states) * self.key(self.table)


class Rotary(Layer):
    """Multiplies positions, which is not for int8, and has a table that it does not multiply by."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.ones(4, 1))

    def forward(self, states: Tensor, position_ids: Tensor) -> Tensor:
        angles = (self.frequencies @ position_ids[:, None].float()).transpose(1, 2)
        return states * angles.cos()


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (Layer, []),
        (InFunction, [("residual add of add_dropped", "no rule knows the add of add_dropped")]),
        (
            InMethod,
            [
                ("matrix product", "no rule knows the products in the methods of InMethod"),
                ("residual add of finish", "no rule knows the add of InMethod.finish"),
            ],
        ),
        (
            AtOnce,
            [
                (
                    "matrix product",
                    "AtOnce computes attention in one call; models that have it in another form load it with "
                    "attn_implementation='eager'",
                )
            ],
        ),
        (Operator, [("matrix product", "no rule knows the products in the methods of Operator")]),
        (Differentiated, [("matrix product", "no rule knows the products in the methods of Differentiated")]),
        (Further, [("further matrix product", "Further has more products than a rule knows")]),
        (WeightRead, []),
        (OfItsOwn, []),
        (Rotary, []),
    ],
)
def test_what_stays_float_in_a_layer_is_named(layer: type[nn.Module], expected: list[Any]) -> None:
    found = qdqpatch.plan(Own(layer))
    misses = [(miss.operation, miss.reason) for miss in found.misses if miss.path == "layers.0"]
    assert misses == expected


def quantized_linears(found: Plan) -> set[str]:
    return {site.path for site in found.sites if site.operation == "linear" and "layers.0" in site.path}


@pytest.mark.parametrize(
    ("layer", "name", "reason"),
    [
        (WeightRead, "dense", "its weight is read by the module that has it, which does not call it"),
        (OfItsOwn, "key", "it computes from the model's own tensors alone"),
    ],
)
def test_linears_that_are_not_called_on_data_stay_float(
    layer: type[nn.Module], name: str, reason: str
) -> None:
    found = qdqpatch.plan(Own(layer))
    (miss,) = [miss for miss in found.misses if miss.path == f"layers.0.{name}"]
    assert miss.reason == reason
    assert quantized_linears(found) == {
        f"layers.0.{other}" for other in ("query", "key", "dense") if other != name
    }


def test_softmax_may_be_a_module() -> None:
    operations = {site.operation for site in qdqpatch.plan(Own(Further)).sites}
    assert operations == {"linear", "query x key", "probabilities x value"}


class Looping(Own):
    """Adds in the loop over its layers, as XLM does, and once before it, as wav2vec 2.0 does."""

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Any:
        states = states + self.pooler(states)
        for number in range(2):
            states = states + self.layers[number](states)
        return (states,)


class Summing(Own):
    """Adds embeddings alone."""

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Any:
        states = states + self.tokens(attention_mask)
        for layer in self.layers:
            states = layer(states)
        return (states,)


@pytest.mark.parametrize(
    ("model", "reasons"),
    [(Looping, ["no rule knows the add of Looping.forward in a loop"]), (Summing, []), (Own, [])],
)
def test_adds_outside_the_layers_are_named(model: type[Own], reasons: list[str]) -> None:
    found = qdqpatch.plan(model(Layer))
    assert [miss.reason for miss in found.misses if miss.operation == "residual add"] == reasons
    assert ("the model itself" in str(found)) is bool(reasons)


def test_poolers_and_embeddings_are_turned_on_in_an_unknown_model_too() -> None:
    found = qdqpatch.plan(Own(Layer), qdqpatch.QDQConfig(pooler=True, embeddings=True))
    assert {site.path for site in found.sites} >= {"pooler.dense", "tokens"}
    reasons = {miss.path: miss.reason for miss in qdqpatch.plan(Own(Layer)).misses}
    assert reasons["pooler.dense"] == "pooler=False in the configuration, as in QDQBERT"
    assert reasons["tokens"] == "embeddings=False in the configuration, as in QDQBERT"
