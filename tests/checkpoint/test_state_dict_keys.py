"""The names in a state dict are those of the original QDQBERT classes, one for one."""

import json

import models
import pytest
import reference_cases as reference

from qdqpatch import calibrate, quantize

KEYS = json.loads((reference.FOLDER / "state_dict_keys.json").read_text())


def test_every_head_was_recorded() -> None:
    assert KEYS.keys() == models.HEADS.keys()


@pytest.mark.parametrize("variant", ["dynamic", "calibrated"])
def test_keys_are_those_of_the_original(head: str, variant: str) -> None:
    model = quantize(models.model_class(head)(models.config(head)))
    if variant == "calibrated":
        calibrate(model, [models.inputs(head)])
    assert sorted(model.state_dict()) == KEYS[head][variant]


def test_shapes_of_ranges_are_those_of_the_original(head: str) -> None:
    case = reference.load(f"{head}-calibrated")
    expected = {name: value.shape for name, value in case.group("state").items() if name.endswith("_amax")}
    model = calibrate(case.model(), [models.inputs(head)])
    ranges = {f"{path}._amax": amax.shape for path, amax in models.ranges(model).items()}
    assert ranges == expected
