"""The command line: what it writes and prints, and how it fails."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import models
import pytest
import torch
from checkpoints import SENTENCES
from commands import assert_fails, left_behind
from transformers import AutoModel, AutoModelForMaskedLM, BertForMaskedLM

import qdqpatch
from qdqpatch.cli import COMMANDS, main
from qdqpatch.patching.apply import is_quantized

REFERENCE = Path(__file__).parents[1] / "reference"


def test_help_names_the_commands_and_each_option_has_help(run) -> None:
    assert "convert" in run("--help").stdout
    assert "inspect" in run("-h").stdout
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        assert command.name == name
        for parameter in command.params:
            is_option = isinstance(parameter, click.Option)
            assert not is_option or parameter.help, f"{command.name} {parameter.name} has no help"


def test_version(run) -> None:
    assert run("--version").stdout == f"qdqpatch, version {qdqpatch.__version__}\n"


def test_wrong_usage_exits_2(run, float_checkpoint: Path) -> None:
    for arguments in (
        ["convert"],
        ["convert", float_checkpoint, "out", "--preset", "int3"],
        ["convert", float_checkpoint, "out", "--task", "cooking"],
        ["convert", float_checkpoint, "out", "--override", "no-equals-sign"],
        ["convert", float_checkpoint, "out", "--override", "*=bits:4"],
        ["convert", float_checkpoint, "out", "--config", "no-such-file"],
        ["inspect", float_checkpoint, "--preset", "qdqbert", "--config", __file__],
    ):
        assert run(*arguments).exit_code == 2, arguments
    assert not left_behind()


def test_convert_gives_what_the_library_gives(run, float_checkpoint: Path, sentences: Path) -> None:
    result = run("convert", float_checkpoint, "out", "--calib", sentences, "--batch-size", 2)
    assert result.exit_code == 0, result.output
    assert "20 operations quantized" in result.stderr
    assert "40 of 40 quantizers have a range" in result.stderr

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(float_checkpoint)
    texts = [line for line in SENTENCES.splitlines() if line]
    batches = [tokenizer(texts[i : i + 2], padding=True, return_tensors="pt") for i in (0, 2)]
    expected = qdqpatch.calibrate(
        qdqpatch.quantize(AutoModelForMaskedLM.from_pretrained(float_checkpoint)), batches, method="auto"
    )
    actual = AutoModelForMaskedLM.from_pretrained("out")
    models.assert_equal(actual.state_dict(), expected.state_dict())
    batch = models.inputs("BertForMaskedLM")
    assert torch.equal(actual(**batch).logits, expected(**batch).logits)
    for name in ("vocab.txt", "tokenizer_config.json"):
        assert (Path("out") / name).read_bytes() == (float_checkpoint / name).read_bytes()
    assert left_behind() == ["out"]


def test_convert_without_data_says_that_ranges_are_missing(run, float_checkpoint: Path) -> None:
    result = run("convert", float_checkpoint, "deep/er/out")
    assert result.exit_code == 0, result.output
    assert "0 of 40 quantizers have a range" in result.stderr
    assert "--calib" in result.stderr
    model = AutoModelForMaskedLM.from_pretrained("deep/er/out")
    assert is_quantized(model)
    assert set(models.ranges(model).values()) == {None}


def test_placement_options_reach_the_model(run, float_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"head": True, "overrides": [{"pattern": "cls.*", "enabled": True}]}))
    override = "*_weight_quantizer=num_bits:4,axis:none"
    for options in (["--preset", "linear-only", "--override", "*.layer.0.*=off"], ["--config", file]):
        result = run("convert", float_checkpoint, "out", "--force", *options, "--override", override)
        assert result.exit_code == 0, result.output
        config = AutoModelForMaskedLM.from_pretrained("out").config.quantization_config
        assert [item.pattern for item in config.overrides][-1] == "*_weight_quantizer"
        assert config.overrides[-1].settings == {"num_bits": 4, "axis": None}
        assert config.head == (options[0] == "--config")
        assert config.matmuls == (options[0] == "--config")


def test_quantizers_that_are_off_do_not_count(run, float_checkpoint: Path, sentences: Path) -> None:
    options = ["--override", "*.query._input_quantizer=off", "--calib", sentences]
    result = run("convert", float_checkpoint, "out", *options)
    assert "20 operations quantized" in result.stderr
    assert "38 of 38 quantizers have a range" in result.stderr
    assert "38 of its 38 quantizers have a range" in run("inspect", "out").stdout


def test_task_chooses_the_head_and_tells_of_random_weights(run, float_checkpoint: Path) -> None:
    result = run("convert", float_checkpoint, "out", "--task", "text-classification")
    assert result.exit_code == 0, result.output
    assert (
        "random now: bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias, classifier.weight"
        in result.stderr
    )
    assert json.loads(Path("out/config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]
    assert run("convert", float_checkpoint, "base", "--task", "feature-extraction").exit_code == 0
    assert type(AutoModel.from_pretrained("base")).__name__ == "BertModel"


@pytest.mark.parametrize("head", ["MaskedLM", "SequenceClassification"])
def test_convert_takes_old_qdqbert_checkpoints(run, head: str) -> None:
    folder = REFERENCE / "checkpoints" / f"QDQBertFor{head}"
    result = run("convert", folder, "out")
    assert result.exit_code == 0, result.output
    assert "40 of 40 quantizers have a range" in result.stderr
    models.assert_equal(
        getattr(__import__("transformers"), f"BertFor{head}").from_pretrained("out").state_dict(),
        qdqpatch.load_qdqbert(folder).state_dict(),
    )


def test_a_quantized_checkpoint_keeps_its_placement(run, float_checkpoint: Path, sentences: Path) -> None:
    assert run("convert", float_checkpoint, "first", "--preset", "no-residual").exit_code == 0
    for arguments in (["convert", "first", "second"], ["inspect", "first"]):
        assert_fails(run(*arguments, "--preset", "qdqbert"), "first is quantized already")
    result = run("convert", "first", "second", "--calib", sentences)
    assert "16 operations quantized" in result.stderr
    assert "32 of 32 quantizers have a range" in result.stderr


def test_quiet_prints_nothing(run, float_checkpoint: Path) -> None:
    result = run("convert", float_checkpoint, "out", "-q")
    assert (result.exit_code, result.output) == (0, "")


def test_verbose_raises_the_error_itself(run) -> None:
    result = run("inspect", "./missing", "-v")
    assert isinstance(result.exception, qdqpatch.QdqError)


def test_force_replaces_and_an_empty_folder_is_fine(run, float_checkpoint: Path, sentences: Path) -> None:
    Path("out").mkdir()
    assert run("convert", float_checkpoint, "out", "--calib", sentences).exit_code == 0
    stale = Path("out/calibration.safetensors")
    assert stale.is_file()
    Path("any").touch()
    assert {path.stat().st_mode for path in Path("out").iterdir()} == {Path("any").stat().st_mode}
    Path("any").unlink()
    message = "out is not empty. Choose another folder. To replace what is there: --force."
    assert_fails(run("convert", float_checkpoint, "out"), message)
    assert run("convert", float_checkpoint, "out", "--force").exit_code == 0
    assert not stale.exists()
    assert left_behind() == ["out"]


def _run_module(
    *arguments: object, prefix: tuple[str, ...] = (), **options: object
) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-m", "qdqpatch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.slow
def test_a_folder_without_permission(float_checkpoint: Path, tmp_path: Path) -> None:
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:  # root may write everywhere, unless it lays that right down
        if shutil.which("setpriv") is None:
            pytest.skip("root, and no setpriv to give up its rights with")
        rights = "-dac_override,-dac_read_search"
        prefix = ("setpriv", f"--bounding-set={rights}", "--inh-caps=-all", "--")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    result = _run_module("convert", float_checkpoint, locked / "out", prefix=prefix)
    assert result.returncode == 1, result.stderr
    assert result.stderr == (
        f"Error: Cannot write to {locked / 'out'}: {locked} is not a folder that you may write in.\n"
    )


@pytest.mark.slow
def test_python_m_qdqpatch_and_the_script_are_the_same(run, float_checkpoint: Path) -> None:
    arguments = ["inspect", float_checkpoint, "--json"]
    module = _run_module(*arguments)
    assert (module.returncode, module.stderr) == (0, "")
    assert json.loads(module.stdout) == json.loads(run(*arguments).stdout)
    command = [Path(sys.executable).with_name("qdqpatch"), "convert", "--help"]
    script = subprocess.run(command, capture_output=True, text=True, check=True)
    assert script.stdout == _run_module("convert", "--help").stdout
    assert "CKPT OUT" in script.stdout


def test_the_float_checkpoint_is_only_read(run, float_checkpoint: Path) -> None:
    before = {path: path.read_bytes() for path in float_checkpoint.iterdir()}
    assert run("convert", float_checkpoint, "out").exit_code == 0
    assert before == {path: path.read_bytes() for path in float_checkpoint.iterdir()}
    assert not is_quantized(BertForMaskedLM.from_pretrained(float_checkpoint))
