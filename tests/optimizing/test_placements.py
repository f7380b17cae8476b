"""What is quantized for an engine and a head."""

from pathlib import Path

import models
import other_models
import pytest
from exports import export

import qdqpatch
from qdqpatch import QDQConfig
from qdqpatch.exporter.targets.openvino import TARGET as OPENVINO
from qdqpatch.optimizing.placements import RANGES, Placement, placement_for


@pytest.mark.parametrize(
    ("target", "meaning", "name", "config"),
    [
        ("onnxruntime", "states", "linear-only, asymmetric", ("linear-only", RANGES["asymmetric"])),
        ("onnxruntime", "classes", "no-residual, asymmetric", ("no-residual", RANGES["asymmetric"])),
        ("openvino", "states", "linear-only, asymmetric", ("linear-only", RANGES["asymmetric"])),
        (
            "openvino",
            "scores",
            "no-residual, Linears asymmetric",
            ("no-residual", RANGES["Linears asymmetric"]),
        ),
        ("tensorrt", "states", "qdqbert", ("qdqbert", {})),
        ("tensorrt", "classes", "outputs", ("outputs", {})),
    ],
)
def test_what_suits_engine_and_head(target: str, meaning: str, name: str, config: tuple) -> None:
    placement = placement_for(target, meaning)
    assert str(placement) == name
    preset, changes = config
    assert placement.config_for(models.build()) == QDQConfig.preset(preset, **changes)


def test_what_a_model_has_not_is_left_out() -> None:
    placement = Placement("no-residual", "Linears asymmetric")
    (override,) = placement.config_for(other_models.on_no_device("fnet")).overrides
    assert override.pattern == "*._input_quantizer"


@pytest.mark.slow
def test_openvino_multiplies_all_in_integers(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    integer = {}
    for ranges in ("asymmetric", "Linears asymmetric"):
        model = models.build()
        qdqpatch.quantize(model, Placement("no-residual", ranges).config_for(model))
        qdqpatch.calibrate(model, [models.inputs(seed=seed) for seed in (2, 3)], "max")
        written = export(model, tmp_path / ranges, "openvino", check=False)
        integer[ranges] = [kernel.integer for kernel in OPENVINO.kernels(written.file)]
    assert sorted(integer["asymmetric"]) == [False] * 2 + [True] * 12  # a kernel is a whole attention
    assert integer["Linears asymmetric"] == [True] * 14
