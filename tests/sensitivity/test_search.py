"""The search for what to leave in float: on models with units made bad, verified by quantizing anew."""

import itertools
import json
import math
from pathlib import Path

import models
import numpy as np
import pytest
import sensitivities
from transformers import PreTrainedModel

import qdqpatch
from qdqpatch import QDQConfig
from qdqpatch.errors import ConfigError
from qdqpatch.evaluation.predicting import predict, torch_run
from qdqpatch.patching.apply import enabled_quantizers
from qdqpatch.sensitivity import MixedPrecision, Sensitivity, find_units, measure, search

BAD = ("layer 1, attention add", "layer 0, feed-forward")


def accuracy(model: PreTrainedModel) -> float:
    task, examples = sensitivities.task(), sensitivities.labelled()
    features = task.features(examples)
    return task.score(examples, features, predict(torch_run(model), task, features))[-1].value


def searched(model: PreTrainedModel, max_drop: float = 0.0, **options: object) -> MixedPrecision:
    task, examples = sensitivities.task(), sensitivities.labelled()
    return search(model, task, examples, measure(model, task, examples), max_drop, **options)


@pytest.fixture(scope="module")
def ruined() -> PreTrainedModel:
    """A calibrated classifier, two of whose units have 2 bits."""
    return sensitivities.calibrated(sensitivities.ruin(*BAD))


@pytest.fixture(scope="module")
def found(ruined: PreTrainedModel) -> MixedPrecision:
    return searched(ruined)


def test_the_smallest_set_is_found(ruined: PreTrainedModel, found: MixedPrecision) -> None:
    """Of all sets up to its size, only this one will do: checked by quantizing anew without each."""
    assert set(found.best.float_units) == set(BAD)
    assert found.best.drop == 0
    units = find_units(ruined)
    config = sensitivities.ruin(*BAD)
    good = [
        {unit.name for unit in chosen}
        for count in range(3)
        for chosen in itertools.combinations(units, count)
        if accuracy(
            sensitivities.calibrated(
                QDQConfig(overrides=(*config.overrides, *(o for unit in chosen for o in unit.overrides)))
            )
        )
        == 100
    ]
    assert good == [set(BAD)]


def test_the_written_configuration_gives_what_was_promised(
    ruined: PreTrainedModel, found: MixedPrecision, here: Path
) -> None:
    Path("mixed.json").write_text(json.dumps(found.to_dict()["config"]))
    config = QDQConfig.from_json_file("mixed.json")
    assert config == found.config
    fresh = sensitivities.calibrated(config)
    off = {path for name in BAD for path in sensitivities.unit(ruined, name).quantizers}
    assert set(enabled_quantizers(fresh)) == set(enabled_quantizers(ruined)) - off
    assert accuracy(fresh) == found.best.value == 100
    assert accuracy(ruined) == found.trials[0].value < 100
    expected = {path: amax for path, amax in models.ranges(ruined).items() if path not in off}
    models.assert_equal({path: models.ranges(fresh)[path] for path in expected}, expected)


def test_what_is_not_needed_is_quantized_again(ruined: PreTrainedModel) -> None:
    """A ranking that has the bad units last makes the first step leave everything in float."""
    task, examples = sensitivities.task(), sensitivities.labelled()
    costs = measure(ruined, task, examples)
    upside_down = Sensitivity(costs.measure, costs.examples, costs.costs[::-1])
    found = search(ruined, task, examples, upside_down, 0.0)
    assert set(found.best.float_units) == set(BAD)
    assert max(len(trial.float_units) for trial in found.trials) == 7
    few = search(ruined, task, examples, upside_down, 0.0, attempts=3)
    assert set(few.best.float_units) > set(BAD)
    assert len(few.trials) < len(found.trials)


def test_nothing_is_left_in_float_without_need() -> None:
    model = sensitivities.calibrated()
    found = searched(model)
    assert [trial.float_units for trial in found.trials] == [()]
    assert found.best is found.trials[0]
    assert found.config == model.config.quantization_config


def test_each_model_is_tried_once_and_the_limit_holds(ruined: PreTrainedModel) -> None:
    for max_drop in (0.0, 5.0, 40.0, 100.0):
        found = searched(ruined, max_drop)
        tried = [frozenset(trial.float_units) for trial in found.trials]
        assert len(set(tried)) == len(tried)
        assert found.best.drop <= max_drop
        assert found.limit == pytest.approx(100 - max_drop, abs=1e-12)
        for trial in found.trials:
            assert trial.drop == pytest.approx(100 - trial.value, abs=1e-12)


def test_where_only_the_float_model_will_do() -> None:
    every = [unit.name for unit in find_units(sensitivities.calibrated())]
    found = searched(sensitivities.calibrated(sensitivities.ruin(*every)))
    assert found.config is None
    assert found.to_dict()["config"] is None
    assert (len(found.best.float_units), found.best.value, found.best.drop) == (8, 100, 0)


def test_without_labels_changed_predictions_count(ruined: PreTrainedModel) -> None:
    task = sensitivities.task()
    examples = [type(example)(example.text, None, None) for example in sensitivities.labelled()]
    found = search(ruined, task, examples, measure(ruined, task, examples), 0.0, labelled=False)
    assert (found.metric, found.float_value) == ("unchanged predictions", 100)
    assert set(found.best.float_units) == set(BAD)
    # The labels of the other tests are the float model's predictions, so the figures are the same.
    assert found.trials[0].value == pytest.approx(accuracy(ruined), abs=1e-12)
    assert np.isclose(found.trials[0].drop, 100 - accuracy(ruined), atol=1e-12)


def test_progress_never_goes_beyond_its_total(ruined: PreTrainedModel) -> None:
    task, examples = sensitivities.task(), sensitivities.labelled()
    costs = measure(ruined, task, examples)
    steps: list[tuple[str, int, int]] = []
    found = search(ruined, task, examples, costs, 0.0, step=lambda *counts: steps.append(counts))
    assert len(steps) == 1 + len(found.trials)
    assert all(text == "Searching" and done <= total for text, done, total in steps)


def test_what_cannot_be_searched(ruined: PreTrainedModel) -> None:
    task, examples = sensitivities.task(), sensitivities.labelled()
    costs = measure(ruined, task, examples)
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="max_drop must be a number of at least 0"):
            search(ruined, task, examples, costs, wrong)
    other = qdqpatch.calibrate(
        qdqpatch.quantize(sensitivities.classifier(), QDQConfig.preset("no-residual")),
        [{"input_ids": models.inputs()["input_ids"]}],
    )
    with pytest.raises(ConfigError, match="The costs are those of another model"):
        search(other, task, examples, costs, 1.0)
