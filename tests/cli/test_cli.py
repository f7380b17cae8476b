"""The command line: what it writes and prints, and how it fails."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import models
import pytest
import torch
from checkpoints import SENTENCES, WORDS, write_checkpoint
from click.testing import CliRunner, Result
from commands import assert_fails
from transformers import AutoModel, AutoModelForMaskedLM, BertForMaskedLM, GPT2Config, GPT2Model

import qdqpatch
from qdqpatch.cli import COMMANDS, main
from qdqpatch.patching.apply import is_quantized

REFERENCE = Path(__file__).parents[1] / "reference"


@pytest.fixture(scope="module")
def float_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float BERT with a masked-LM head and its tokenizer, as `save_pretrained` leaves them."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "float")


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    file = tmp_path / "sentences.txt"
    file.write_text(SENTENCES, encoding="utf-8")
    return file


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command line in an empty folder, inside this process."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


def left_behind() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


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


def test_quiet_prints_nothing(run, float_checkpoint: Path) -> None:
    result = run("convert", float_checkpoint, "out", "-q")
    assert (result.exit_code, result.output) == (0, "")


def test_verbose_raises_the_error_itself(run) -> None:
    result = run("inspect", "./missing", "-v")
    assert isinstance(result.exception, qdqpatch.QdqError)


def test_missing_checkpoints(run, float_checkpoint: Path) -> None:
    Path("empty").mkdir()
    assert_fails(run("convert", "./missing", "out"), "There is no folder ./missing")
    assert_fails(run("convert", "missing", "out"), "There is no folder missing here")
    assert_fails(run("convert", "empty", "out"), "empty has no config.json")
    assert_fails(run("convert", float_checkpoint / "config.json", "out"), "is a file")
    assert left_behind() == ["empty"]


def test_damaged_checkpoints(run, float_checkpoint: Path) -> None:
    shutil.copytree(float_checkpoint, "broken")
    weights = Path("broken/model.safetensors")
    data = weights.read_bytes()
    for kept in (0, 5, len(data) // 2, len(data) - 1):
        weights.write_bytes(data[:kept])
        assert_fails(run("convert", "broken", "out"), "model.safetensors is damaged")
    weights.unlink()
    assert_fails(run("convert", "broken", "out"), "broken has no weights")
    Path("broken/pytorch_model.bin").write_bytes(b"PK not a checkpoint")
    assert_fails(run("convert", "broken", "out"), "pytorch_model.bin is damaged")
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    Path("broken/pytorch_model.bin").unlink()
    Path("broken/model.safetensors.index.json").write_text(json.dumps(index))
    assert_fails(run("convert", "broken", "out"), "lacks model-00001-of-00002.safetensors")
    Path("broken/config.json").write_text("{")
    assert_fails(run("convert", "broken", "out"), "Cannot read the config of broken")
    assert left_behind() == ["broken"]


def test_weights_of_another_shape(run, float_checkpoint: Path) -> None:
    shutil.copytree(float_checkpoint, "other")
    config = json.loads(Path("other/config.json").read_text())
    Path("other/config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    assert_fails(run("convert", "other", "out"), "Cannot load other")
    assert left_behind() == ["other"]


def test_a_model_that_is_no_bert(run) -> None:
    GPT2Model(GPT2Config(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=1)).save_pretrained("gpt2")
    for command in (["convert", "gpt2", "out"], ["inspect", "gpt2"]):
        assert_fails(
            run(*command), "There are no rules for the model type gpt2", "quantize(model, rules=[...])"
        )
    assert left_behind() == ["gpt2"]


def test_an_override_that_matches_nothing(run, float_checkpoint: Path) -> None:
    result = run("convert", float_checkpoint, "out", "--override", "*.layer.7.*=off")
    assert_fails(result, "'*.layer.7.*' matches no quantizer")
    assert not left_behind()


def test_a_bad_configuration_file(run, float_checkpoint: Path) -> None:
    file = Path("config.json")
    for text, fragment in (
        ("{", "Cannot read the configuration config.json"),
        ("[]", "config.json must hold a JSON object"),
        ('{"linear": true}', "Unknown key 'linear' in the quantization config. Did you mean 'linears'?"),
        (
            '{"weight": {"num_bits": 99}}',
            "config.json: num_bits must be an integer from 2 to 16, or (4, 3) for FP8, not 99",
        ),
        ('{"model_type": "bert"}', "config.json is the config of a model"),
        ("[" * 9999, "Cannot read the configuration config.json"),
    ):
        file.write_text(text)
        assert_fails(run("convert", float_checkpoint, "out", "--config", file), fragment)
    assert left_behind() == ["config.json"]


def test_calibration_data_that_cannot_be_used(run, float_checkpoint: Path, sentences: Path) -> None:
    empty, binary = Path("empty.txt"), Path("binary.txt")
    empty.write_text("\n  \n")
    binary.write_bytes(b"\xfd\xfe\xfd")
    assert_fails(run("convert", float_checkpoint, "out", "--calib", empty), "empty.txt has no text")
    assert_fails(run("convert", float_checkpoint, "out", "--calib", binary), "line 1 is not UTF-8 text")
    assert_fails(run("convert", float_checkpoint, "out", "--calib", "no.txt"), "There is no file no.txt")
    shutil.copytree(float_checkpoint, "bare", ignore=shutil.ignore_patterns("vocab.txt", "tokenizer*"))
    assert_fails(run("convert", "bare", "out", "--calib", sentences), "bare has no tokenizer")
    shutil.copytree(float_checkpoint, "wordless")
    Path("wordless/vocab.txt").write_text("")
    result = run("convert", "wordless", "out", "--calib", sentences)
    assert_fails(result, "Cannot load the tokenizer of wordless")
    large = [*WORDS, *(f"word{i}" for i in range(50))]
    shutil.copytree(float_checkpoint, "large")
    Path("large/vocab.txt").write_text("\n".join(large) + "\n", encoding="utf-8")
    result = run("convert", "large", "out", "--calib", sentences)
    assert_fails(result, "has 66 tokens and the model only 48")
    assert left_behind() == ["bare", "binary.txt", "empty.txt", "large", "wordless"]


def test_an_output_that_must_not_be_written(run, float_checkpoint: Path) -> None:
    Path("full").mkdir()
    Path("full/precious").write_text("kept")
    Path("file").write_text("kept")
    for force in ((), ("--force",)):
        result = run("convert", float_checkpoint, "full", *force)
        assert_fails(result, "full is not empty, and qdqpatch did not write all that is in it: precious.")
        assert "--force" not in result.stderr
    assert_fails(run("convert", float_checkpoint, "file"), "file is a file")
    assert_fails(run("convert", float_checkpoint, "file/out"), "file is not a folder")
    shutil.copytree(float_checkpoint, "in")
    assert_fails(run("convert", "in", "in", "--force"), "in is the checkpoint that is read")
    assert_fails(run("convert", "in", ".", "--force"), ". holds the checkpoint that is read")
    assert Path("full/precious").read_text() == Path("file").read_text() == "kept"
    assert left_behind() == ["file", "full", "in"]


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


def test_a_full_disk_leaves_nothing_behind(run, float_checkpoint: Path, tmp_path: Path) -> None:
    assert run("convert", float_checkpoint, tmp_path / "out").exit_code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    # The nearest thing to a full disk that needs no privileges: writing past the limit fails.
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        result = run("convert", float_checkpoint, tmp_path / "out", "--force")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 1, result.stderr
    assert "Error: Cannot write" in result.stderr
    assert isinstance(result.exception, SystemExit)
    assert sorted(os.listdir(tmp_path)) == ["here", "out"]
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


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
