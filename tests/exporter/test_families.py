"""Every architecture that has rules, exported for every engine: as `levels.json` says, and the check passes.

`levels.json` has for each model type how far it is supported, and for each engine what of its layers stays
float there, and why; `#` stands for the number of a layer.
"""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import families
import pytest
from transformers import PreTrainedModel
from transformers.utils import logging

import qdqpatch
from qdqpatch.choices import TARGETS
from qdqpatch.errors import QdqError, QuantizationWarning
from qdqpatch.exporter.kernels import AGAIN, product_name
from qdqpatch.nn.names import letters_of
from qdqpatch.rules.architectures import ARCHITECTURES

LEVELS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("levels.json").read_text())
CONSTANT = {"pos_proj", "pos_q_proj"}
"""What DeBERTa computes of constants alone where the length is fixed, and engines when they load the file."""

NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


def matmuls(model: PreTrainedModel) -> set[str]:
    """Return the names of the matmuls that the plan of a float model quantizes, as an export calls them."""
    found = set()
    for site in qdqpatch.plan(model).sites:
        letters = [each for each in map(letters_of, site.quantizers) if each is not None]
        if letters:
            found.add(f"{site.path}.{product_name((letters[0], letters[1]))}")
        elif site.operation == "linear":
            found.add(site.path)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", [family for family in families.FAMILIES if family in LEVELS])
def test_it_is_exported_as_its_level_says(family: str, target: str, tmp_path: Path) -> None:
    logging.disable_progress_bar()
    level = LEVELS[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QuantizationWarning)
        model = families.calibrated(family)
    if reason := level.get("refused", {}).get(target):
        with pytest.raises(QdqError, match=re.escape(reason)):
            qdqpatch.export(model, tmp_path / "out", target)
        return
    # Any shape once, for what makes masks and positions; the others take half the time for one shape.
    shape = None if target == "onnxruntime" else (2, 8)
    result = qdqpatch.export(model, tmp_path / "out", target, shape=shape)
    assert result.comparisons
    if result.operations is None:
        return
    integer: dict[str, bool] = {}
    for each in result.operations:
        name = each.name.partition(AGAIN)[0]
        integer[name] = integer.get(name, True) and each.integer
    wanted = matmuls(families.float_model(family))
    assert {name.rpartition(".")[2] for name in wanted - {*integer}} <= CONSTANT
    floats = {
        NUMBER.sub("#", name) for name, is_integer in integer.items() if name in wanted and not is_integer
    }
    assert floats == {*level.get("float", {}).get(target, {})}


def test_every_level_is_of_an_architecture() -> None:
    assert {*LEVELS} <= {*ARCHITECTURES}
    for level in LEVELS.values():
        assert level["level"] in ("full", "partial", "refused")
        assert (level["level"] == "full") == (len(level) == 1)
