"""What `qdqpatch convert` refuses: one line says what is wrong, and nothing is left behind."""

import json
import os
import resource
import shutil
import signal
from pathlib import Path

from checkpoints import WORDS
from commands import assert_fails, left_behind
from transformers import GPT2Config, GPT2Model


def test_missing_checkpoints(run, float_checkpoint: Path) -> None:
    Path("empty").mkdir()
    assert_fails(run("convert", "./missing", "out"), "There is no folder ./missing")
    assert_fails(run("convert", "missing", "out"), "There is no folder missing here")
    assert_fails(run("convert", "empty", "out"), "empty has no config.json")
    assert_fails(run("convert", float_checkpoint / "config.json", "out"), "is a file")
    assert left_behind() == ["empty"]


def test_checkpoints_within(run, float_checkpoint: Path) -> None:
    """As the Trainer and older versions of sentence-transformers write them."""
    for inner in ("checkpoint-1", "checkpoint-2"):
        shutil.copytree(float_checkpoint, Path("runs") / inner)
    assert_fails(run("convert", "runs", "out"), "There is one in runs/checkpoint-1.")
    Path("runs/modules.json").write_text("[]")
    assert_fails(run("convert", "runs", "out"), "SentenceTransformer('runs').save_pretrained(...)")


def test_code_of_a_checkpoint_is_not_run(run, float_checkpoint: Path) -> None:
    """Nor is anybody asked whether it shall be, as transformers does."""
    shutil.copytree(float_checkpoint, "own")
    config = json.loads(Path("own/config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig"}}
    Path("own/config.json").write_text(json.dumps(config))
    Path("own/mine.py").write_text("raise SystemExit(3)")
    result = run("convert", "own", "out")
    assert_fails(result, "brings code of its own, which is run only where you trust it: --trust-remote-code.")
    assert "Do you wish" not in result.output


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
