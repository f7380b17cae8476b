"""What comes with calibration, on every architecture that has rules."""

import contextlib
import copy
import warnings

import family_models as families
import pytest
from family_models import family as family  # a fixture

import qdqpatch
from qdqpatch.calibration import clip_gelu, shift, smooth
from qdqpatch.errors import CalibrationWarning, QuantizationWarning, UnsupportedModelError
from qdqpatch.patching.apply import named_quantizers

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


@pytest.mark.slow
def test_smoothed_and_shifted_it_is_the_same_function_and_auto_ranges_all_of_it(family: str) -> None:
    source = families.float_model(family)
    batch = families.inputs(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QuantizationWarning)
        model = qdqpatch.quantize(copy.deepcopy(source))
    for step in (smooth, shift):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationWarning)
            with contextlib.suppress(UnsupportedModelError):  # not every architecture has what is moved
                step(model, [batch])
    qdqpatch.calibrate(model, [batch], method="auto")
    assert not [path for path, quantizer in named_quantizers(model) if quantizer.amax is None]
    for _, quantizer in named_quantizers(model):
        quantizer.disable()
    expected = families.output(source, batch)
    # Constants through other biases, and attention in another kernel, round otherwise.
    assert (families.output(model, batch) - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("family", ["esm", "roformer"])
def test_smoothing_is_taken_back_where_rotary_positions_mix_channels(family: str) -> None:
    model = families.calibrated(family)
    batch = families.inputs(model)
    expected = families.output(model, batch)
    with pytest.warns(CalibrationWarning, match="Smoothing was taken back"):
        smooth(model, [batch])
    assert (families.output(model, batch) == expected).all()


@pytest.mark.parametrize(
    ("family", "paths"),
    [
        ("bert", ["encoder.layer.{}.output.dense"]),
        ("modernbert", ["layers.{}.mlp.Wo"]),
        ("nomic_bert", ["layers.{}.mlp.down_proj"]),
        ("t5", ["encoder.block.{}.layer.1.DenseReluDense.wo"]),
        ("distilbert", ["transformer.layer.{}.ffn.lin2"]),
    ],
)
def test_what_the_activation_or_its_product_with_a_gate_gives_is_clipped(
    family: str, paths: list[str]
) -> None:
    model = families.calibrated(family)
    before = {path: quantizer.amax.clone() for path, quantizer in named_quantizers(model)}
    clip_gelu(model, 1e-3)
    after = dict(named_quantizers(model))
    changed = [path for path, amax in before.items() if (after[path].amax != amax).any()]
    assert changed == [f"{path.format(layer)}._input_quantizer" for layer in (0, 1) for path in paths]
