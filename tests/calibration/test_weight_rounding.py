"""Rounding weights by what they are multiplied by: smaller errors of outputs, on the same levels."""

import models
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import qdqpatch
from qdqpatch import QDQConfig, calibrate, quantize
from qdqpatch.calibration import round_weights, weight_rounding
from qdqpatch.errors import CalibrationError, ConfigError, NotQuantizedError
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.pairs import pairs_fit
from qdqpatch.patching.apply import named_quantizers

DATA = [models.inputs(seed=seed, length=length) for seed, length in ((2, 8), (3, 6), (4, 8))]
WEIGHTS = QDQConfig.preset("linear-only", overrides=["*_weight_quantizer=num_bits:4"])


def calibrated(config: QDQConfig = WEIGHTS) -> PreTrainedModel:
    return calibrate(quantize(models.float_model("BertModel"), config), DATA, "max")


def linears(model: PreTrainedModel) -> dict[str, QuantLinear]:
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, QuantLinear) and module._weight_quantizer.is_enabled
    }


def inputs_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """What every Linear multiplies, shape `(positions of data, features)`, if the rest is float."""
    found: dict[str, list[Tensor]] = {path: [] for path in linears(model)}
    for _, quantizer in named_quantizers(model):
        quantizer._if_quant = False
    mask = torch.ones(0)
    for path, linear in linears(model).items():

        def keep(_: nn.Module, given: tuple[Tensor, ...], path: str = path) -> None:
            found[path].append(given[0][mask])

        linear.register_forward_pre_hook(keep)
    for batch in DATA:
        mask = batch["attention_mask"].bool()
        with torch.no_grad():
            model(**batch)
    for module in model.modules():
        module._forward_pre_hooks.clear()
    for _, quantizer in named_quantizers(model):
        quantizer._if_quant = True
    with torch.no_grad():
        return {path: linears(model)[path]._input_quantizer(torch.cat(rows)) for path, rows in found.items()}


def test_outputs_come_nearer_on_the_same_levels() -> None:
    model = calibrated()
    before = {path: linear.weight.detach().clone() for path, linear in linears(model).items()}
    ranges = {path: quantizer.interval for path, quantizer in named_quantizers(model)}
    inputs = inputs_of(model)
    assert round_weights(model, DATA) is model
    for path, linear in linears(model).items():
        weight = linear.weight.detach()
        nearest = linear._weight_quantizer(before[path])
        assert torch.equal(linear._weight_quantizer(weight), weight), path
        assert not torch.equal(weight, nearest), path
        errors = [(inputs[path] @ (used - before[path]).T).square().sum() for used in (weight, nearest)]
        assert errors[0] < 0.7 * errors[1], path  # chance would leave them alike
    for path, quantizer in named_quantizers(model):
        assert quantizer.interval is None or torch.equal(quantizer.interval, ranges[path])


def test_it_is_the_least_squares_solution_for_the_columns_that_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The factor's shortcut against solving for what is left, anew for each column."""
    monkeypatch.setattr(weight_rounding, "BLOCK", 3)  # the last block is smaller
    torch.manual_seed(0)
    rows = torch.randn(64, 8) @ torch.randn(8, 8)
    linear = linears(calibrated())["encoder.layer.0.attention.self.query"]
    quantizer = linear._weight_quantizer
    weight = torch.randn(4, 8)
    quantizer.load_range(weight.abs().amax(1, keepdim=True))
    moments = (rows.T @ rows).double()
    damped = moments + 0.01 * moments.diagonal().mean() * torch.eye(8)
    left, expected = weight.double().clone(), torch.zeros(4, 8)
    for column in range(8):
        expected[:, column : column + 1] = quantizer(left[:, column : column + 1].float())
        error = expected[:, column].double() - left[:, column]
        rest = slice(column + 1, 8)
        left[:, rest] -= torch.outer(error, torch.linalg.solve(damped[rest, rest], damped[rest, column]))
    found = weight_rounding._compensated(weight, moments, quantizer, quantizer.amax.expand_as(weight))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("method", ["max", "pairs"])
def test_pairs_that_fit_stay_so(method: str) -> None:
    config = QDQConfig.preset("linear-only")
    model = calibrate(quantize(models.float_model("BertModel"), config), DATA, "max", weight_method=method)
    before = {path: linear.weight.detach().clone() for path, linear in linears(model).items()}
    round_weights(model, DATA)
    fits = {}
    for path, linear in linears(model).items():
        levels = linear._weight_quantizer.integers(linear.weight).detach()
        nearest = linear._weight_quantizer.integers(before[path])
        assert not torch.equal(levels, nearest), path
        fits[path] = pairs_fit(levels.numpy())
    assert all(fits.values()) if method == "pairs" else not any(fits.values())


def test_a_column_takes_what_its_partner_leaves() -> None:
    order = torch.tensor([2, 1, 3, 0, 4])  # 4 has no partner
    assert weight_rounding._partners(order) == [2, 3, 0, 1, 4]
    pairs = weight_rounding._Pairs(torch.tensor([[8.0], [16.0]]), [1, 0])
    rounded = torch.tensor([[6.0, 0.0], [-6.0, 0.0]])
    values = torch.tensor([[5.0], [-11.0]])
    assert pairs.clip(values, 0, rounded) is values
    assert pairs.clip(values, 1, rounded).tolist() == [[2.0], [-10.0]]


def test_padding_is_no_data() -> None:
    batch = DATA[0]
    hidden = batch["attention_mask"] == 0
    assert hidden.any()
    other = {**batch, "input_ids": torch.where(hidden, 7, batch["input_ids"])}
    found = [round_weights(calibrated(), [data]).state_dict() for data in (batch, other)]
    models.assert_equal(*found)


def test_memory_for_one_matrix_takes_a_pass_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_rounding, "PASS_BYTES", 1)
    model = calibrated()
    first = round_weights(calibrated(), DATA)
    monkeypatch.undo()
    together = round_weights(model, iter(DATA))
    path = "encoder.layer.0.attention.self.query"
    assert torch.equal(first.get_submodule(path).weight, together.get_submodule(path).weight)
    assert len(list(weight_rounding._passes(linears(model)))) == 1


def test_what_cannot_be_rounded() -> None:
    with pytest.raises(NotQuantizedError):
        round_weights(models.float_model("BertModel"), DATA)
    inputs = QDQConfig(overrides=["*_weight_quantizer=off"])
    with pytest.raises(ConfigError, match="no plain Linear has a quantized weight of its own"):
        round_weights(calibrated(inputs), DATA)
    tracked = qdqpatch.training.train_ranges(calibrated(), "frozen", "follow")
    with pytest.raises(ConfigError, match=r"self\.query's weight follows the weight"):
        round_weights(tracked, DATA)
    model = calibrated()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CalibrationError, match="no calibration batch"):
        round_weights(model, [])
    models.assert_equal(model.state_dict(), before)


def test_no_row_gets_worse() -> None:
    """Column by column is not always better: such rows keep the nearest levels."""
    torch.manual_seed(0)
    linear = linears(calibrated())["encoder.layer.0.attention.self.query"]
    quantizer, size = linear._weight_quantizer, linear.in_features
    with torch.no_grad():
        linear.weight.normal_()
    quantizer.load_range(linear.weight.detach().abs().amax(1, keepdim=True))
    rows = torch.randn(64, size) @ (torch.eye(size) + 0.2 * torch.randn(size, size))
    moments, weight = rows.T @ rows, linear.weight.detach()

    def errors(used: Tensor) -> Tensor:
        return (rows @ (used - weight).T).double().square().sum(0)

    greedy = weight_rounding._compensated(
        weight, moments.double(), quantizer, quantizer.amax.expand_as(weight)
    )
    nearest = quantizer(weight)
    assert (errors(greedy) > 1.001 * errors(nearest)).any()
    assert (errors(weight_rounding._rounded(linear, moments)) <= 1.001 * errors(nearest)).all()  # fp32


def test_weights_meet_the_integers_of_the_file() -> None:
    """What a weight is multiplied by is the quantized input; sums of fp32 differ by their order alone."""
    model = calibrated()
    found = weight_rounding._moments(model, linears(model), DATA, True)
    for path, inputs in inputs_of(model).items():
        torch.testing.assert_close(found[path], inputs.T @ inputs, rtol=1e-5, atol=1e-5)
