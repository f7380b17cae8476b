"""The ranges that `qdqpatch train` begins with."""

from pathlib import Path
from typing import Any

import models
import pytest
from training_jobs import Recording, job
from transformers import PreTrainedModel

from qdqpatch import QDQConfig, ptq
from qdqpatch.calibration import shifting
from qdqpatch.tasks.base import DataSource
from qdqpatch.training import stages
from qdqpatch.training.run import run_job

ON, OFF = {"enabled": True}, {"enabled": False}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"shift": False}, ["Calibrating", "Refining the ranges"]),
        ({"refine": 0}, ["Shifting", "Calibrating"]),
        (
            {"smooth_inputs": True},
            ["Shifting", "Smoothing inputs", "Calibrating", "Refining the ranges"],
        ),
        (
            {"smooth_residuals": True},
            ["Shifting", "Smoothing residual adds", "Calibrating", "Refining the ranges"],
        ),
        ({"config": QDQConfig(overrides={"*": OFF, "*_weight_quantizer": ON})}, ["Shifting", "Calibrating"]),
    ],
    ids=["not shifted", "not refined", "inputs smoothed", "adds smoothed", "no activation quantized"],
)
def test_how_ranges_are_set(
    changes: dict[str, Any], expected: list[str], ckpt: str, data: DataSource, tmp_path: Path
) -> None:
    listener = Recording(stop_at=1)
    with pytest.raises(KeyboardInterrupt):
        run_job(job(ckpt, data, **changes), tmp_path / "out", listener=listener)
    first = listener.said.index("Evaluating the float model")
    assert listener.said[first + 1 : listener.said.index("Evaluating the calibrated model")] == expected


def test_a_model_with_nothing_to_shift_trains_too(
    ckpt: str, data: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (stages, shifting):
        monkeypatch.setattr(module, "find_shifts", lambda model: ())
    listener = Recording()
    run_job(job(ckpt, data), tmp_path / "out", listener=listener)
    assert "Shifting" not in listener.said


def test_what_ranges_are_set_by(
    ckpt: str, data: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def spy(model: PreTrainedModel, batches: list[models.Tensors], **options: Any) -> PreTrainedModel:
        calls.append(options)
        return ptq(model, batches, **options)

    monkeypatch.setattr(stages, "ptq", spy)
    listener = Recording()
    run_job(job(ckpt, data, method="mse", refine=3), tmp_path / "out", listener=listener)
    off = {"smooth_inputs": False, "smooth_residuals": False}
    assert calls == [{"method": "mse", "shift": True, "refine": 3, "listener": listener, **off}]
