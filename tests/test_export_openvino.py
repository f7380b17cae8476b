"""`export` for OpenVINO, in a process of its own: the tests' instruction set is none that OpenVINO has."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from exports import LARGEST, MEAN

pytestmark = pytest.mark.slow

CASES = ["all parts", "Linears alone"]
CODE = f"""
import json, os
import conftest  # one thread, no network
os.environ.pop("ONEDNN_MAX_CPU_ISA", None)
import models, torch
from exports import made
from qdqpatch.engines import OPENVINO

told = {{}}
for case in {CASES}:
    exported = made(case, "openvino")
    result, inputs = exported.result, models.inputs(exported.name, seed=5)
    models.assert_unchanged(exported.model, exported.before)
    with torch.no_grad():
        expected = models.flatten(exported.model(**inputs))
    found = OPENVINO.load(result.file, threads=1, exact=True).run_tensors(inputs)
    differences = {{}}
    for name, tensor in expected.items():
        steps = abs(found[name] - tensor.numpy()) / (float(tensor.abs().max()) / 127)
        differences[name] = [float(steps.mean()), float(steps.max())]
    told[case] = {{
        "outputs": [list(expected), list(found)],
        "differences": differences,
        "engine": result.engine,
        "files": sorted(path.name for path in result.folder.iterdir()),
        "size": [result.size, sum(p.stat().st_size for p in result.folder.glob("openvino_model.*"))],
        "integer": [each.name for each in result.operations if each.integer],
        "float": {{each.name: each.reason for each in result.operations if not each.integer}},
    }}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What was exported and seen."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    environment.pop("ONEDNN_MAX_CPU_ISA", None)
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_the_file_computes_what_the_model_does(told: dict[str, Any], case: str) -> None:
    expected, found = told[case]["outputs"]
    assert sorted(found) == sorted(expected)
    for mean, largest in told[case]["differences"].values():
        assert mean <= MEAN
        assert largest <= LARGEST


@pytest.mark.parametrize("case", CASES)
def test_what_is_written(told: dict[str, Any], case: str) -> None:
    assert told[case]["files"] == ["config.json", "openvino_model.bin", "openvino_model.xml"]
    assert told[case]["engine"].startswith("openvino 20")
    size, of_files = told[case]["size"]
    assert size == of_files


def test_integer_kernels_are_counted(told: dict[str, Any]) -> None:
    whole, placed = told["all parts"], told["Linears alone"]
    assert (len(whole["integer"]), whole["float"]) == (18, {})
    assert len(placed["integer"]) == 12
    pooler = placed["float"].pop("pooler.dense")
    assert pooler == "not quantized: its part of the model is off in the QDQConfig"
    assert [reason.count("matmul_") for reason in placed["float"].values()] == [2] * 4
