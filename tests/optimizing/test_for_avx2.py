"""What processors without VNNI need stays so through the ladder."""

from types import SimpleNamespace
from typing import Any

import models
import pytest
import torch

from qdqpatch.calibration.weights import recalibrate_weights, weight_ranges
from qdqpatch.listening import CalibrationListener
from qdqpatch.optimizing import ladder
from qdqpatch.optimizing.engine import Place


@pytest.mark.parametrize(
    ("target", "cpu", "expected"),
    [("onnxruntime", "avx2", "pairs"), ("onnxruntime", "arm", "max"), ("openvino", "avx2", "pairs")],
)
def test_a_place_says_how_weights_are_calibrated(target: str, cpu: str, expected: str) -> None:
    assert Place.of(target, cpu=cpu).weight_method == expected


@pytest.mark.parametrize("settings", [{}, {"weight_method": "pairs"}])
def test_distilled_weights_have_the_ranges_asked_for(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    best = recalibrate_weights(models.calibrated(), settings.get("weight_method", "max"))

    def fit(model: Any, *arguments: Any, **options: Any) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("dense.weight"):
                    parameter.mul_(1.5)

    monkeypatch.setattr("qdqpatch.training.fit.fit", fit)
    material: Any = SimpleNamespace(
        calibration=[], task=SimpleNamespace(collate=None), batch_size=1, model=models.build(), head=None
    )
    found = ladder.STEPS["distillation"](material, best, settings, CalibrationListener())
    ranges = models.ranges(found)
    expected = weight_ranges(found, settings.get("weight_method", "max"))
    models.assert_equal({path: ranges[path] for path in expected}, expected)
    before = models.ranges(best)
    assert any(not torch.equal(before[path], amax) for path, amax in expected.items())
