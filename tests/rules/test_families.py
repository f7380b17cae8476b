"""Every architecture that has rules: where they apply, and that the model works ever after.

`sites.json` has the sites of each, as they are to be; a release of transformers that moves one fails here.
"""

import collections
import copy
import json
import pickle
import re
from pathlib import Path

import family_models as families
import pytest
import torch
import transformers
from family_models import family as family  # a fixture
from transformers.utils import logging

import qdqpatch
from qdqpatch.patching.apply import named_quantizers
from qdqpatch.patching.plan import Plan
from qdqpatch.rules.architectures import ARCHITECTURES

GOLDEN: dict[str, dict[str, dict[str, list[str]]]] = json.loads(
    Path(__file__).with_name("sites.json").read_text()
)
OLDEST = transformers.__version__ == "5.0.0"
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
PART_ALONE = {
    "BartForCausalLM": "decoder.",
    "CLIPForImageClassification": "vision_model.",
    "SiglipForImageClassification": "vision_model.",
}
"""Heads of one of a model's two parts."""

MIXING = {"bart", "convbert", "mobilebert"}
"""Where a token is computed from its neighbours too, or the decoder has the padded tokens and no mask."""

# transformers 5.0.0 compiles functions of DeBERTa and ModernBERT when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


@pytest.fixture(autouse=True)
def quiet() -> None:
    """Without the bars of loading."""
    logging.disable_progress_bar()


def sites_of(found: Plan) -> dict[str, list[str]]:
    """Return where each operation with its quantizers is, `#` for the number of a layer, and how often."""
    counted = collections.Counter(
        (f"{site.operation}: {' '.join(site.quantizers)}", NUMBER.sub("#", site.path)) for site in found.sites
    )
    rows: dict[str, list[str]] = {}
    for (operation, path), count in counted.items():
        rows.setdefault(operation, []).append(f"{path} x{count}")
    return rows


def paths_of(rows: dict[str, list[str]]) -> set[str]:
    """Return what is where, without how often."""
    return {f"{row.partition(' x')[0]} {operation}" for operation, group in rows.items() for row in group}


def golden(family: str) -> dict[str, list[str]]:
    """Return what the sites should be with the installed transformers."""
    return GOLDEN["5.0.0"].get(family, GOLDEN["present"][family]) if OLDEST else GOLDEN["present"][family]


def test_sites(family: str) -> None:
    found = qdqpatch.plan(families.float_model(family))
    assert sites_of(found) == golden(family)
    assert not found.shortfall()
    assert not found.unknown


def test_every_head_has_the_sites_of_its_base(family: str) -> None:
    expected = paths_of(golden(family))
    for name, head in families.heads(family).items():
        with torch.device("meta"):
            model = head(families.config(family))
        found = qdqpatch.plan(model)
        inside = paths_of(sites_of(found))
        rows = {row for row in expected if row.startswith(PART_ALONE.get(name, ""))}
        assert all(any(path.endswith(row) for path in inside) for row in rows), name
        assert not found.shortfall(), name


def test_with_every_quantizer_off_it_computes_what_the_float_model_does(family: str) -> None:
    model = families.float_model(family)
    batch = families.inputs(model)
    expected = families.output(model, batch)
    qdqpatch.quantize(model)
    for _, quantizer in named_quantizers(model):
        quantizer.disable()
    # Attention in other kernels sums in another order: fp32 roundings of two layers.
    assert (families.output(model, batch) - expected).norm() < 1e-5 * expected.norm()


def test_calibrated_it_is_close_to_the_float_model_and_saved_as_it_is(family: str, tmp_path: Path) -> None:
    model, source = families.calibrated(family), families.float_model(family)
    batch = families.inputs(model)
    expected, actual = families.output(source, batch), families.output(model, batch)
    assert all(quantizer.amax is not None for _, quantizer in named_quantizers(model))
    # Random weights amplify: 8 bits move the outputs of these by up to a tenth.
    assert (actual - expected).norm() < 0.15 * expected.norm()
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not {*info["missing_keys"], *info["unexpected_keys"]}
    assert torch.equal(families.output(loaded.eval(), batch), actual)


def test_copies_compute_the_same_and_a_step_trains(family: str) -> None:
    model = families.calibrated(family)
    batch = families.inputs(model)
    expected = families.output(model, batch)
    assert torch.equal(families.output(copy.deepcopy(model), batch), expected)
    assert torch.equal(families.output(pickle.loads(pickle.dumps(model)), batch), expected)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3)
    model(**batch)[0].square().mean().backward()
    optimizer.step()
    trained = families.output(model.eval(), batch)
    assert trained.isfinite().all()
    assert not torch.equal(trained, expected)


def test_what_padding_holds_moves_no_range(family: str) -> None:
    source = families.float_model(family)
    batch = families.inputs(source)
    if "attention_mask" not in batch or family in MIXING:
        return
    ranges = []
    for noise in (0, 7):
        changed = torch.where(batch["attention_mask"].bool(), batch["input_ids"], batch["input_ids"] + noise)
        model = qdqpatch.quantize(families.float_model(family))
        qdqpatch.calibrate(model, [batch | {"input_ids": changed}], method="max")
        ranges.append({path: quantizer.amax for path, quantizer in named_quantizers(model)})
    assert not [path for path in ranges[0] if not torch.equal(ranges[0][path], ranges[1][path])]


def test_dequantized_it_is_the_float_model_and_saved_as_one(family: str, tmp_path: Path) -> None:
    model, source = families.calibrated(family), families.float_model(family)
    batch = families.inputs(model)
    model.save_pretrained(tmp_path / "quantized")
    qdqpatch.dequantize(model)
    assert torch.equal(families.output(model, batch), families.output(source, batch))
    assert {path: type(module) for path, module in model.named_modules()} == {
        path: type(module) for path, module in source.named_modules()
    }
    names = []
    for saved, folder in ((model, tmp_path / "model"), (source, tmp_path / "source")):
        saved.save_pretrained(folder)
        with transformers.modeling_utils.safe_open(folder / "model.safetensors", framework="pt") as file:
            names.append(sorted(file.keys()))
    assert names[0] == names[1]


def test_every_table_has_a_model_here() -> None:
    assert {*families.CONFIGS} == {*ARCHITECTURES}


@pytest.mark.skipif(not OLDEST, reason="asks what the oldest transformers has")
def test_what_the_oldest_transformers_lacks_is_said_to_be_absent() -> None:
    levels = json.loads((Path(__file__).parents[1] / "exporter" / "levels.json").read_text())
    absent = {name for name, level in levels.items() if level.get("5.0.0") == {"level": "absent"}}
    assert absent == {*families.CONFIGS} - {*families.FAMILIES}
