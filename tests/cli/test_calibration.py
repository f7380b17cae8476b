"""Calibration on the command line: its options, what they reach, what is said, and how it fails."""

import gzip
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import models
import pytest
import torch
from checkpoints import write_checkpoint, write_tokenizer
from click.testing import CliRunner, Result
from commands import assert_fails
from rich.console import Console
from transformers import AutoModelForMaskedLM, AutoTokenizer

import qdqpatch
from qdqpatch.cli import main
from qdqpatch.cli.bar import CalibrationBar

TEXTS = [f"{'the cat ' * (i % 5)}sat on a mat{'s' * (i % 2)}" for i in range(40)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float BERT with a masked-LM head, which takes 32 tokens, and its tokenizer."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "float")


@pytest.fixture
def convert(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Convert the checkpoint to `out`, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def convert(*options: object) -> Result:
        return CliRunner().invoke(main, ["convert", str(checkpoint), "out", *map(str, options)])

    return convert


def assert_fails_without_a_trace(result: Result, *fragments: str, code: int = 1) -> None:
    """Say what is wrong in one line, and leave nothing behind."""
    assert_fails(result, *fragments, code=code, at_once=False)
    assert not Path("out").exists()
    assert not [path.name for path in Path().iterdir() if path.name.startswith(".")]


def test_the_ranges_are_those_of_the_library(convert, checkpoint: Path) -> None:
    lines = [f"{i},{text},{label}" for i, (text, label) in enumerate(zip(TEXTS, TEXTS[::-1], strict=True))]
    Path("data.csv.gz").write_bytes(gzip.compress("\n".join(["n,first,second", *lines]).encode()))
    options = {"samples": 12, "seed": 5, "batch-size": 4, "max-length": 20}
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    columns = ("--text-column", "first", "--text-pair-column", "second")
    result = convert("--calib", "data.csv.gz", *columns, *given, "--percentile", 99)
    assert result.exit_code == 0, result.output
    assert "Calibrating with 12 of 40 texts in data.csv.gz (first and second)." in result.stderr
    assert "40 of 40 quantizers have a range" in result.stderr
    assert "Warning" not in result.stderr

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    batches = qdqpatch.calibration.text_batches(
        "data.csv.gz", tokenizer, "first", "second", samples=12, seed=5, batch_size=4, max_length=20
    )
    expected = qdqpatch.calibrate(
        qdqpatch.quantize(AutoModelForMaskedLM.from_pretrained(checkpoint)), batches, percentile=99
    )
    models.assert_equal(AutoModelForMaskedLM.from_pretrained("out").state_dict(), expected.state_dict())


def test_ranges_are_adjusted_afterwards(convert, checkpoint: Path) -> None:
    Path("data.txt").write_text("\n".join(TEXTS))
    given = ("--method", "max", "--max-length", 32, "--fuse-qkv", "--clip-gelu", 0.25)
    result = convert("--calib", "data.txt", *given)
    assert result.exit_code == 0, result.output
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    batches = qdqpatch.calibration.text_batches(TEXTS, tokenizer, max_length=32)
    expected = qdqpatch.quantize(AutoModelForMaskedLM.from_pretrained(checkpoint))
    qdqpatch.calibrate(expected, batches, method="max")
    before = models.ranges(expected)
    qdqpatch.calibration.clip_gelu(qdqpatch.calibration.fuse_qkv(expected), 0.25)
    found = models.ranges(AutoModelForMaskedLM.from_pretrained("out"))
    models.assert_equal(found, models.ranges(expected))
    changed = {path.rpartition(".")[2] for path in before if not torch.equal(found[path], before[path])}
    assert changed >= {"_input_quantizer", "matmul_q_input_quantizer"}


@pytest.mark.parametrize("method", ["max", "mse", "entropy", "auto"])
def test_every_method(convert, checkpoint: Path, method: str) -> None:
    Path("data.txt").write_text("\n".join(TEXTS))
    result = convert("--calib", "data.txt", "--method", method, "--max-length", 32, "--batch-size", 4)
    assert result.exit_code == 0, result.output
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    batches = qdqpatch.calibration.text_batches(TEXTS, tokenizer, max_length=32, batch_size=4)
    expected = qdqpatch.calibrate(
        qdqpatch.quantize(AutoModelForMaskedLM.from_pretrained(checkpoint)), batches, method=method
    )
    models.assert_equal(AutoModelForMaskedLM.from_pretrained("out").state_dict(), expected.state_dict())


def test_the_defaults(convert, seen: dict[str, Any]) -> None:
    Path("data.txt").write_text("\n".join(TEXTS * 10))
    result = convert("--calib", "data.txt")
    assert result.exit_code == 0, result.output
    assert "Calibrating with 256 of 400 texts in data.txt (text)." in result.stderr
    assert (seen["method"], seen["percentile"], seen["count"]) == ("auto", 99.99, 16)
    steps = (
        "smooth",
        "shift",
        "smooth_inputs",
        "refine",
        "fuse_inputs",
        "fuse_qkv",
        "clip_gelu",
        "round_weights",
        "correct_biases",
    )
    assert not any(seen[step] for step in steps)
    assert {len(batch["input_ids"]) for batch in seen["batches"]} == {16}
    for first, second in zip(seen["batches"], seen["again"], strict=True):
        models.assert_equal(first, second)


def test_multiple_choice_models_get_one_choice(convert, seen: dict[str, Any]) -> None:
    Path("data.tsv").write_text("sentence1\tsentence2\nthe cat\tsat\n")
    result = convert("--calib", "data.tsv", "--task", "multiple-choice")
    assert result.exit_code == 0, result.output
    assert {tuple(tensor.shape) for tensor in seen["batches"][0].values()} == {(1, 1, 6)}


def test_a_hub_data_set(convert, seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, subset: str | None, split: str) -> datasets.Dataset:
        assert (name, subset, split) == ("nyu-mll/glue", "sst2", "validation")
        return datasets.Dataset.from_dict({"sentence": TEXTS, "label": [0] * len(TEXTS)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    result = convert("--calib", "nyu-mll/glue", "--subset", "sst2", "--split", "validation", "--samples", 9)
    assert result.exit_code == 0, result.output
    assert "Calibrating with 9 of 40 texts in nyu-mll/glue (sentence)." in result.stderr
    assert seen["count"] == 1


def test_data_that_is_not_there(convert, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_fails_without_a_trace(
        convert("--calib", "no/such"), "There is no file no/such, and the hub gives no such data set"
    )
    assert_fails_without_a_trace(convert("--calib", "no/such/file"), "There is no file no/such/file")
    assert_fails_without_a_trace(convert("--calib", "."), ". is a folder")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert_fails_without_a_trace(convert("--calib", "imdb"), "There is no file imdb", "pip install datasets")


def test_data_that_cannot_be_used(convert) -> None:
    for name, content, fragment in (
        ("a.csv", b"left,right\na b,c d\n", "a.csv: which column holds the texts is not clear"),
        ("a.jsonl", b"{\n", "a.jsonl: 1 of 1 line cannot be read; line 1 is not JSON"),
        ("a.txt.gz", b"\x1f\x8b\x08", "a.txt.gz is damaged"),
        ("a.pdf", b"text", "The name of a.pdf does not tell its format"),
    ):
        Path(name).write_bytes(content)
        assert_fails_without_a_trace(convert("--calib", name), fragment)
    assert_fails_without_a_trace(
        convert("--calib", "a.csv", "--text-column", "text"), "a.csv has no column 'text'"
    )


def test_lines_that_cannot_be_read_are_told_of(convert, seen: dict[str, Any]) -> None:
    Path("[b]data.jsonl").write_text('{"text": "the cat"}\n{"text": \n{"text": "a dog"}\n')
    result = convert("--calib", "[b]data.jsonl", "--max-length", 32)
    assert result.exit_code == 0, result.output
    (warning,) = re.findall("^Warning: .*$", result.stderr, re.MULTILINE)
    assert warning.startswith("Warning: [b]data.jsonl: 1 of 3 lines left out; line 2 is not JSON (")
    assert "Calibrating with 2 of 2 texts in [b]data.jsonl (text)." in result.stderr
    assert seen["batches"][0]["input_ids"].shape[0] == 2
    quiet = convert("--calib", "[b]data.jsonl", "-q", "--force")
    assert (quiet.exit_code, quiet.output) == (0, "")
    assert "Warning: [b]data.jsonl: 1 of 3" in convert("--calib", "[b]data.jsonl", "-v", "--force").stderr


def test_short_texts_are_told_of_unless_their_length_is_given(convert, seen: dict[str, Any]) -> None:
    Path("data.txt").write_text("the cat sat\n")
    result = convert("--calib", "data.txt")
    assert (
        "Warning: The model takes sequences of up to 32 tokens, and those to calibrate with have at most 5 "
        "(median 5). If longer" in result.stderr
    )
    assert "Warning" not in convert("--calib", "data.txt", "--max-length", 128, "--force").stderr


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--samples", 3], "--samples: this is for calibration, and needs --calib"),
        (["--method", "max", "--percentile", 9], "--method, --percentile: this is for calibration"),
        (["--max-length", 128], "--max-length: this is"),
        (["--calib", "data.txt", "--percentile", 99, "--method", "mse"], "--percentile is for --method perc"),
        (["--calib", "data.txt", "--percentile", 0], "0.0 is not in the range 1<x<=100"),
        (["--calib", "data.txt", "--percentile", 100.5], "100.5 is not in the range 1<x<=100"),
        (["--calib", "data.txt", "--percentile", "nan"], "'--percentile': 'nan' is not a finite number"),
        (["--calib", "data.txt", "--text-pair-column", "b"], "--text-pair-column needs --text-column"),
        (["--calib", "data.txt", "--split", "test"], "--split is for data sets on the hub"),
        (["--calib", "data.txt", "--subset", "sst2"], "--subset is for data sets on the hub"),
        (["--calib", "data.txt", "--samples", 0], "0 is not in the range x>=1"),
        (["--calib", "data.txt", "--batch-size", 0], "0 is not in the range x>=1"),
        (["--calib", "data.txt", "--max-length", 3], "3 is not in the range x>=4"),
        (["--calib", "data.txt", "--method", "best"], "'best' is not one of 'max', 'percentile', 'mse'"),
    ],
)
def test_options_that_do_not_fit_each_other(convert, options: list[object], fragment: str) -> None:
    Path("data.txt").write_text("the cat\n")
    assert_fails_without_a_trace(convert(*options), fragment, code=2)


@pytest.mark.parametrize(
    ("terminal", "quiet", "shown"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_a_progress_bar_on_terminals(terminal: bool, quiet: bool, shown: bool) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, quiet=quiet, width=80)
    with CalibrationBar(console) as bar:
        for text in ("Shifting", "Calibrating"):
            bar.say(text)
            bar.step(1, 2)
            bar._bar.refresh()
    for text in ("Shifting", "Calibrating"):
        assert (text in screen.getvalue()) == shown
    assert screen.getvalue().count("\x1b[?25h") == shown  # the cursor comes back


def test_what_became_of_the_model_is_said(convert) -> None:
    Path("data.txt").write_text("\n".join(TEXTS))
    result = convert("--calib", "data.txt", "--samples", 8, "--method", "max")
    assert result.exit_code == 0, result.output
    output = " ".join(result.stderr.split())
    assert re.search(
        r"Beside the float model, on \d+ texts held back: unchanged predictions [\d.]+, KL divergence \S+\.",
        output,
    )
    assert "optimize" not in output
    poor = convert(
        "--calib", "data.txt", "--method", "max", "--force", "--override", "*_quantizer=num_bits:2"
    )
    assert (
        "That is less than unchanged predictions of at least 99. Better steps are found by: qdqpatch opt"
        in " ".join(poor.stderr.split())
    )
    result = convert("--calib", "data.txt", "--method", "max", "--force")
    assert "on 40 texts that it was calibrated with, for lack of others: " in " ".join(result.stderr.split())


def test_one_text_tells_nothing_of_a_reranker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing correlates with a single score; the checkpoint is written all the same."""
    monkeypatch.chdir(tmp_path)
    models.build("BertForSequenceClassification", num_labels=1).save_pretrained("float")
    write_tokenizer(Path("float"))
    Path("data.txt").write_text("the cat sat\n")
    result = CliRunner().invoke(
        main, ["convert", "float", "out", "--calib", "data.txt", "--method", "max", "--max-length", "32"]
    )
    assert result.exit_code == 0, result.output
    assert "Wrote out: " in result.stderr
    assert "Beside the float model" not in result.stderr


def test_help_has_a_section_for_calibration(convert) -> None:
    sections = re.split(r"^([A-Z][a-z]+):$", convert("--help").stdout, flags=re.MULTILINE)
    found = {
        title: re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE)
        for title, text in zip(sections[1::2], sections[2::2], strict=True)
    }
    assert list(found) == ["Data", "Quantization", "Calibration", "Running", "Options"]
    assert found["Data"] == [
        *("--calib", "--text-column", "--text-pair-column", "--split", "--subset", "--samples", "--seed"),
        *("--max-length", "--prompt"),
    ]
    assert found["Calibration"][:3] == ["--method", "--percentile", "--weight-method"]
    assert found["Running"] == ["--batch-size"]
    assert "--force" in found["Options"]


def test_every_step_can_be_switched_on(convert, checkpoint: Path) -> None:
    Path("data.txt").write_text("\n".join(TEXTS))
    given = ("--calib", "data.txt", "--max-length", 20, "--batch-size", 8, "--preset", "no-residual")
    switches = (
        *("--smooth", "--shift", "--smooth-inputs", "--refine", 1),
        *("--round-weights", "--correct-biases", "--fuse-inputs", "--fuse-qkv", "--clip-gelu", 0.25),
    )
    result = convert(*given, *switches)
    assert result.exit_code == 0, result.output
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    expected = qdqpatch.ptq(
        AutoModelForMaskedLM.from_pretrained(checkpoint),
        qdqpatch.calibration.text_batches(TEXTS, tokenizer, max_length=20, batch_size=8),
        qdqpatch.QDQConfig.preset("no-residual"),
        smooth=True,
        shift=True,
        smooth_inputs=True,
        refine=1,
        fuse_inputs=True,
        fuse_qkv=True,
        clip_gelu=0.25,
        round_weights=True,
        correct_biases=True,
    )
    models.assert_equal(AutoModelForMaskedLM.from_pretrained("out").state_dict(), expected.state_dict())


def test_a_step_that_cannot_be_done_is_an_error(convert) -> None:
    Path("data.txt").write_text("\n".join(TEXTS))
    options = ("--calib", "data.txt", "--max-length", 20, "--preset", "linear-only", "--smooth")
    assert_fails_without_a_trace(convert(*options), "nothing to smooth")
    assert_fails_without_a_trace(convert("--refine", 2), "--refine: this is for calibration", code=2)


@pytest.mark.parametrize("value", ["1e39", "nan", "inf", "0", "-1", "x"])
def test_a_maximum_that_cannot_be_one_is_refused_when_it_is_read(value: str) -> None:
    result = CliRunner().invoke(
        main, ["convert", "nothing", "out", "--calib", "no.txt", "--clip-gelu", value]
    )
    assert result.exit_code == 2
    assert "Invalid value for '--clip-gelu'" in result.output
