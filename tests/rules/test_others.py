"""Model types without a table: `others.json` has what their structure shows, and what is left float.

A release of transformers that changes it fails here.
"""

import json
from pathlib import Path
from typing import Any

import other_models as others
import pytest
import transformers

import qdqpatch
from qdqpatch.errors import UnsupportedModelError
from qdqpatch.rules.architectures import ARCHITECTURES

GOLDEN: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("others.json").read_text())
OLDEST = transformers.__version__ == "5.0.0"

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


def found_in(name: str) -> dict[str, Any]:
    """Return how many sites of a kind a model has, and what stays float of what is turned on."""
    model = others.on_no_device(name)
    try:
        found = qdqpatch.plan(model)
    except UnsupportedModelError as error:
        return {"refused": str(error).partition(" which computes with ")[2].partition(". ")[0]}
    counts: dict[str, int] = {}
    for site in found.sites:
        kind = "add" if "add" in site.operation else "product" if " x " in site.operation else "linear"
        counts[kind] = counts.get(kind, 0) + 1
    return {"sites": counts, "float": [[path, operation] for path, operation, _ in found.wanted_rows()]}


@pytest.mark.skipif(OLDEST, reason="its classes are cut otherwise, and so are their paths")
@pytest.mark.parametrize("name", others.TYPES)
def test_what_is_found(name: str) -> None:
    assert found_in(name) == GOLDEN[name]


def test_every_type_is_listed_and_has_no_table() -> None:
    assert {*GOLDEN} == {*others.CONFIGS}
    assert {*GOLDEN}.isdisjoint(ARCHITECTURES)
