"""`qdqpatch inspect`: what is quantized and what is not, and the paths."""

import json
from pathlib import Path

import models
from commands import left_behind
from transformers import AutoModelForMaskedLM

import qdqpatch

REFERENCE = Path(__file__).parents[1] / "reference"


def test_inspect_prints_what_is_quantized_and_what_not(run, float_checkpoint: Path) -> None:
    result = run("inspect", float_checkpoint)
    assert result.exit_code == 0, result.output
    assert "20 operations quantized" in result.stdout
    for fragment in (
        "bert.encoder.layer.{0..1}.attention.self.query",
        "input int8, weight int8 per channel (axis 0)",
        "matmul_q int8, matmul_k int8",
        "add_local int8, add_residual int8",
    ):
        assert fragment in result.stdout
    assert "head=False in the configuration, as in QDQBERT" in result.stdout
    assert not left_behind()


def test_inspect_prints_json(run, float_checkpoint: Path, sentences: Path) -> None:
    data = json.loads(run("inspect", float_checkpoint, "--json").stdout)
    assert data == qdqpatch.plan(AutoModelForMaskedLM.from_pretrained(float_checkpoint)).to_dict()
    assert run("convert", float_checkpoint, "out", "--calib", sentences).exit_code == 0
    sites = {
        (site["path"], name): settings["amax"]
        for site in json.loads(run("inspect", "out", "--json").stdout)["sites"]
        for name, settings in site["quantizers"].items()
    }
    for path, amax in models.ranges(AutoModelForMaskedLM.from_pretrained("out")).items():
        owner, _, name = path.rpartition(".")
        assert amax is not None
        assert sites[owner, name] == (amax.flatten().tolist() if amax.dim() else amax.item())


def test_inspect_lists_the_paths_that_overrides_take(run, float_checkpoint: Path) -> None:
    lines = run("inspect", float_checkpoint, "--ranges").stdout.splitlines()
    paths = [line.split()[0] for line in lines if line.strip().endswith("from each input")]
    config = qdqpatch.QDQConfig(overrides=dict.fromkeys(paths, True))
    assert len(paths) == 40
    assert len(qdqpatch.plan(AutoModelForMaskedLM.from_pretrained(float_checkpoint), config).sites) == 20


def test_inspect_prints_ranges(run) -> None:
    folder = REFERENCE / "checkpoints" / "QDQBertForMaskedLM"
    lines = run("inspect", folder, "--ranges").stdout.splitlines()
    model = qdqpatch.load_qdqbert(folder)
    amax = model.get_submodule("bert.encoder.layer.1.output.add_residual_input_quantizer").amax
    assert any(
        "1.output.add_residual_input_quantizer" in line and f"{amax.item():.4g}" in line for line in lines
    )
    assert "40 of its 40 quantizers have a range" in lines[-1]
