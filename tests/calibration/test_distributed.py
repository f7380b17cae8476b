"""Two processes that see half of the data each set the ranges that one sets which sees all of it."""

import datetime
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import torch
import torch.distributed as dist
from errors_by_hand import errors_by_hand
from processes import run_two
from torch import Tensor
from transformers import PreTrainedModel

from qdqpatch import QDQConfig, calibrate, quantize
from qdqpatch.calibration import (
    collect,
    refine_ranges,
    refining,
    round_weights,
    shift,
    smooth_inputs,
    smooth_residuals,
)
from qdqpatch.calibration.observing import observing
from qdqpatch.calibration.weight_rounding import linears_to_round
from qdqpatch.patching.input_scales import scaled_modules

METHODS = ["max", "percentile", "mse", "entropy"]
AUTO = "*_input_quantizer=off", "*.intermediate.dense._input_quantizer=on", "*.matmul_v_input_quantizer=on"
WIDE = "encoder.layer.0.attention.self.query._input_quantizer"
PROMPTLY = 10
"""Seconds until every process has failed; waiting for a process that is gone would take the group's 20."""

pytestmark = pytest.mark.slow  # two processes have to import everything


def model(*overrides: str) -> PreTrainedModel:
    return quantize(models.build(num_hidden_layers=1), QDQConfig(overrides=list(overrides)))


def data() -> list[dict[str, Tensor]]:
    """Batches of several lengths and scales, so that the two processes' histograms have other bin widths."""
    return [models.inputs(seed=seed, length=length) for seed, length in enumerate([8, 12, 5, 8, 20])]


def embedded(scale: float) -> dict[str, Tensor]:
    embeddings = torch.randn(2, 6, 24, generator=torch.Generator().manual_seed(8))
    return {"inputs_embeds": embeddings * scale, "attention_mask": torch.ones(2, 6, dtype=torch.long)}


def shards(name: str) -> list[list[Any]]:
    match name:
        case (
            "empty"
            | "auto with an empty shard"
            | "refine with an empty shard"
            | "round with an empty shard"
            | "smooth with an empty shard"
        ):
            return [data(), []]
        case "nothing":
            return [[], []]
        case "batch":
            return [data(), [data()[0], 3]]
        case "comparing" | "refining" | "rounding":
            return [data()[:2], [data()[2], {"input_idz": 1}]]
        case "activation":
            return [data(), [data()[0], embedded(float("nan"))]]
    return [data()[:2], data()[2:]]


# What the processes do.


def ranges_by_method(shard: list[Any], rank: int) -> Any:
    statistics = collect(model("*.value._input_quantizer=axis:2"), shard)
    return {method: statistics.ranges(method) for method in METHODS}


def set_ranges(shard: list[Any], rank: int) -> Any:
    return models.ranges(calibrate(model(), shard, "percentile"))


def automatic(shard: list[Any], rank: int) -> Any:
    statistics = collect(model(*AUTO), shard, compare=True)
    tensors = {path: (seen.counts.tolist(), seen.width, seen.errors) for path, seen in statistics.items()}
    return tensors, models.ranges(calibrate(model(*AUTO), shard, method="auto"))


def with_nan_in_a_weight(shard: list[Any], rank: int) -> Any:
    broken = model()
    with torch.no_grad():
        broken.encoder.layer[0].output.dense.weight[0, 0] = float("nan") if rank else 1.0
    return models.ranges(calibrate(broken, shard, "percentile"))


def shifted(shard: list[Any], rank: int) -> Any:
    changed = shift(quantize(models.build(num_hidden_layers=1), QDQConfig.preset("no-residual")), shard)
    return {name: bias.detach() for name, bias in changed.named_parameters() if name.endswith("bias")}


def spoilt() -> PreTrainedModel:
    """A calibrated model with a range that is far too wide."""
    wide = calibrate(model(), data(), method="max")
    quantizer = wide.get_submodule(WIDE)
    quantizer.amax = quantizer.amax * 40
    return wide


def refined(shard: list[Any], rank: int) -> Any:
    return models.ranges(refine_ranges(spoilt(), shard, epochs=3))


def rounded(shard: list[Any], rank: int) -> Any:
    changed = round_weights(calibrate(model(), data(), method="max"), shard)
    return {path: linear.weight.detach() for path, linear in linears_to_round(changed).items()}


def smoothed(shard: list[Any], rank: int) -> Any:
    changed = smooth_residuals(smooth_inputs(model(), shard), shard)
    factors = {path: module.input_scale for path, module in scaled_modules(changed)}
    return factors, {path: module.input_scale for path, module in scaled_modules(residuals(shard))}


def residuals(shard: list[Any]) -> PreTrainedModel:
    return smooth_residuals(model(), shard)


SCENARIOS: dict[str, Callable[[list[Any], int], Any]] = {
    "shards": ranges_by_method,
    "empty": ranges_by_method,
    "calibrate": set_ranges,
    "nothing": set_ranges,
    "batch": set_ranges,
    "activation": set_ranges,
    "weight": with_nan_in_a_weight,
    "auto": automatic,
    "auto with an empty shard": automatic,
    "comparing": automatic,
    "shift": shifted,
    "smooth": smoothed,
    "smooth with an empty shard": smoothed,
    "round": rounded,
    "round with an empty shard": rounded,
    "rounding": rounded,
    "refine": refined,
    "refine with an empty shard": refined,
    "refining": refined,
}


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    results = {}
    for number, (name, scenario) in enumerate(SCENARIOS.items()):
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/group{number}",
            rank=rank,
            world_size=2,
            timeout=datetime.timedelta(seconds=20),
        )
        dist.barrier()
        start = time.monotonic()
        try:
            result = scenario(shards(name)[rank], rank)
        except Exception as error:
            result = type(error).__name__, str(error)
        results[name] = result, time.monotonic() - start
        # The other one must not be cut off: it has to come back by itself.
        (folder / f"{number}.{rank}").touch()
        while not (folder / f"{number}.{1 - rank}").exists():
            time.sleep(0.01)
        dist.destroy_process_group()
    torch.save(results, folder / f"results{rank}")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes made of each scenario, and how long it took."""
    folder = tmp_path_factory.mktemp("processes")
    run_two(__file__, folder)
    return [torch.load(folder / f"results{rank}", weights_only=True) for rank in (0, 1)]


def result(results: list[dict[str, Any]], name: str, rank: int) -> Any:
    return results[rank][name][0]


@pytest.mark.parametrize("name", ["shards", "empty"])
@pytest.mark.parametrize("method", METHODS)
def test_ranges_are_those_of_one_process(name: str, method: Any, results: list[dict[str, Any]]) -> None:
    """To the last bit, and per channel too."""
    expected = collect(model("*.value._input_quantizer=axis:2"), data()).ranges(method)
    for rank in (0, 1):
        models.assert_equal(result(results, name, rank)[method], expected)


def test_calibrate_sets_the_ranges_of_one_process(results: list[dict[str, Any]]) -> None:
    expected = models.ranges(calibrate(model(), data(), "percentile"))
    for rank in (0, 1):
        models.assert_equal(result(results, "calibrate", rank), expected)


@pytest.mark.parametrize(("name", "held"), [("auto", [1, 3]), ("auto with an empty shard", [1])])
def test_auto_compares_what_all_processes_held_back(
    name: str, held: list[int], results: list[dict[str, Any]]
) -> None:
    (tensors, ranges), (others, other_ranges) = (result(results, name, rank) for rank in (0, 1))
    assert tensors == others
    models.assert_equal(ranges, other_ranges)
    counted = collect(model(*AUTO), [batch for i, batch in enumerate(data()) if i not in held])
    for path, (counts, width, errors) in tensors.items():
        batches = [data()[i] for i in held]
        by_hand = errors_by_hand(model(*AUTO), path, list(errors), batches, padding=True, chosen=ranges)
        assert list(errors.values()) == pytest.approx(by_hand, rel=1e-12), path
        assert counts == counted[path].counts.tolist(), path
        assert width == counted[path].width, path
        assert float(ranges[path]) == min(errors, key=errors.__getitem__), path
        assert len(errors) > 1, path


def test_channels_are_shifted_by_what_all_processes_saw(results: list[dict[str, Any]]) -> None:
    mine, other = (result(results, "shift", rank) for rank in (0, 1))
    models.assert_equal(mine, other)
    expected = shifted(data(), 0)
    for name, bias in expected.items():
        # The means are float64 sums of the same terms in another order, rounded to fp32 once.
        torch.testing.assert_close(mine[name], bias, rtol=2**-23, atol=2**-26, msg=name)
    assert any(not torch.equal(bias, shifted(data()[:2], 0)[name]) for name, bias in expected.items())


@pytest.mark.parametrize("name", ["smooth", "smooth with an empty shard"])
def test_factors_are_those_of_what_all_processes_saw(name: str, results: list[dict[str, Any]]) -> None:
    (mine, of_adds), (other, others_of_adds) = (result(results, name, rank) for rank in (0, 1))
    models.assert_equal(mine, other)
    models.assert_equal(of_adds, others_of_adds)
    models.assert_equal(
        of_adds, {path: module.input_scale for path, module in scaled_modules(residuals(data()))}
    )
    assert len(of_adds) == 4


@pytest.mark.parametrize("name", ["round", "round with an empty shard"])
def test_weights_are_rounded_by_what_all_processes_saw(name: str, results: list[dict[str, Any]]) -> None:
    mine, other = (result(results, name, rank) for rank in (0, 1))
    models.assert_equal(mine, other)
    expected, alone = (rounded(given, 0) for given in (data(), data()[:2]))
    for path, weight in expected.items():
        # The sums of products are fp32 in another order, which can turn a tie between two levels.
        same = (mine[path] == weight).float().mean()
        assert same >= 0.99, path
        assert same > (alone[path] == weight).float().mean()


@pytest.mark.parametrize("name", ["refine", "refine with an empty shard"])
def test_ranges_become_the_mean_of_what_the_processes_learned(
    name: str, results: list[dict[str, Any]]
) -> None:
    mine, other = (result(results, name, rank) for rank in (0, 1))
    models.assert_equal(mine, other)
    start = models.ranges(spoilt())
    assert mine[WIDE] < 0.9 * start[WIDE]
    learned: dict[str, Any] = dict.fromkeys(start, 0.0)
    counts = [sum(place % 8 != 1 for place in range(len(shard))) for shard in shards(name)]
    for shard, count in zip(shards(name), counts, strict=True):
        if count:
            moved = moves(spoilt(), shard)
            learned = {path: total + count * moved.get(path, 0.0) for path, total in learned.items()}
    for path, total in learned.items():
        expected = start[path] * torch.exp(torch.as_tensor(total / sum(counts)))
        torch.testing.assert_close(mine[path], expected, rtol=1e-5, atol=0, msg=path)


def moves(changed: PreTrainedModel, shard: list[Any]) -> dict[str, Tensor]:
    """What is added to the logarithm of each range in one process."""
    paths = {id(quantizer): path for path, quantizer in models.named_quantizers(changed)}
    quantizers = list(refining.learnable(changed).values())
    with observing(changed, {}):
        reconstruction = refining.Reconstruction(changed, refining.quantized_layers(changed), True)
        given = [batch for place, batch in enumerate(shard) if place % 8 != 1]
        moved = refining._learn(reconstruction, quantizers, given, 3, lambda done, total: None)
    return {paths[id(quantizer)]: change for quantizer, change in zip(quantizers, moved, strict=True)}


FAILURES = {
    "batch": r"Batch 2 is a int",
    "comparing": r"input_ids",
    "refining": r"input_ids",
    "rounding": r"input_ids",
    "weight": r"encoder\.layer\.0\.output\.dense\._weight_quantizer saw NaN",
}


@pytest.mark.parametrize(("name", "said"), FAILURES.items(), ids=FAILURES)
def test_a_failure_in_one_process_is_one_in_all(name: str, said: str, results: list[dict[str, Any]]) -> None:
    (kind, message), (own_kind, own_message) = (result(results, name, rank) for rank in (0, 1))
    assert kind == "ProcessError"
    assert re.search(r"(process|rank) 1", message), message
    assert re.search(said, own_message), (own_kind, own_message)
    assert max(results[rank][name][1] for rank in (0, 1)) < PROMPTLY


@pytest.mark.parametrize(
    ("name", "said"),
    [("activation", "query._input_quantizer saw NaN or infinity"), ("nothing", "no calibration batch")],
)
def test_what_is_wrong_with_all_of_the_data_every_process_says(
    name: str, said: str, results: list[dict[str, Any]]
) -> None:
    for rank in (0, 1):
        kind, message = result(results, name, rank)
        assert kind == "CalibrationError"
        assert said in message
        assert results[rank][name][1] < PROMPTLY


if __name__ == "__main__":
    work(int(sys.argv[2]), Path(sys.argv[1]))
