"""One folder, unchanged, in everything that loads such folders; and int8 runs, not the float model."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import invoke
from onnxruntime.quantization import quantize_dynamic
from sentence_folders import DENSE, TEXTS
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer

import qdqpatch
from qdqpatch.checkpoint.companions import read_companions
from qdqpatch.checkpoint.sentence_head import load_sentence_head
from qdqpatch.engines.exactness import THREADS, Exactness, exactness
from qdqpatch.engines.sessions import ENGINES, ONNX_RUNTIME
from qdqpatch.errors import CheckpointError, ConfigError
from qdqpatch.lint.graph import read_sites
from qdqpatch.output.manifest import MANIFEST
from qdqpatch.patching.apply import is_quantized

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("traced_once")]


@pytest.fixture(scope="module")
def expected(root: Path) -> torch.Tensor:
    """The float model's embeddings."""
    return embeddings(root / "float")


def tokens(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt"))


def embeddings(folder: Path) -> torch.Tensor:
    """Run the folder in transformers, and pool as it says."""
    head = load_sentence_head(read_companions(str(folder)))
    batch = tokens(folder)
    with torch.no_grad():
        return head(AutoModel.from_pretrained(folder)(**batch).last_hidden_state, batch["attention_mask"])


def assert_int8(found: torch.Tensor, expected: torch.Tensor, width: int = DENSE) -> None:
    """See that embeddings are close to the float ones, and not the float ones."""
    assert found.shape == expected.shape == (len(TEXTS), width)
    cosine = torch.nn.functional.cosine_similarity(found, expected)
    assert cosine.min() > 0.98
    assert cosine.max() < 1 - 1e-6


def test_auto_model(root: Path, expected: torch.Tensor) -> None:
    assert_int8(embeddings(root / "out"), expected)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines(engine: str, root: Path, expected: torch.Tensor) -> None:
    file = {"onnxruntime": "onnx/model.onnx", "openvino": "openvino/openvino_model.xml"}[engine]
    session = ENGINES[engine].load(root / "out" / file, threads=1, exact=True)
    outputs = session.run_tensors(tokens(root / "out"))
    assert list(outputs) == ["last_hidden_state", "sentence_embedding"]
    found = torch.from_numpy(outputs["sentence_embedding"])
    assert_int8(found, expected)
    # an engine rounds to a neighbouring level here and there
    assert torch.nn.functional.cosine_similarity(found, embeddings(root / "out")).min() > 0.999


def test_exported_model_of_transformers(root: Path, expected: torch.Tensor) -> None:
    exporters = pytest.importorskip("transformers.exporters")
    outputs = exporters.ExportedModel.from_pretrained(root / "out")(**tokens(root / "out"))
    assert_int8(outputs.text_embeds, expected)
    assert outputs.last_hidden_state.shape[:2] == tokens(root / "out")["input_ids"].shape


SUPPORT = Path(__file__).parents[1] / "support"
SERVERS, NODE = os.environ.get("QDQPATCH_SERVERS_PYTHON"), os.environ.get("QDQPATCH_NODE_MODULES")


def run(*command: str | Path) -> torch.Tensor:
    """Run what prints the vectors of `TEXTS`, whose arguments they are."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*command, *TEXTS], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return torch.tensor(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.skipif(SERVERS is None, reason="QDQPATCH_SERVERS_PYTHON names no Python with tests/servers.txt")
def test_optimum(root: Path, expected: torch.Tensor) -> None:
    assert_int8(run(SERVERS, SUPPORT / "servers.py", "optimum_custom", root / "out"), expected)
    found = run(SERVERS, SUPPORT / "servers.py", "optimum", root / "out")
    with torch.no_grad():
        states = AutoModel.from_pretrained(root / "float")(**tokens(root / "float")).last_hidden_state
    assert_int8(found, states[:, 0], found.shape[1])


@pytest.mark.skipif(SERVERS is None, reason="QDQPATCH_SERVERS_PYTHON names no Python with tests/servers.txt")
def test_fastembed(root: Path, expected: torch.Tensor) -> None:
    assert_int8(run(SERVERS, SUPPORT / "servers.py", "fastembed", root / "out"), expected)


@pytest.mark.skipif(NODE is None, reason="QDQPATCH_NODE_MODULES names no folder with transformers.js")
def test_transformers_js(root: Path, expected: torch.Tensor) -> None:
    library = Path(str(NODE)) / "@huggingface/transformers/dist/transformers.node.mjs"
    assert_int8(run("node", SUPPORT / "server.mjs", library, root / "out"), expected)


def test_companions_and_weights_are_there(root: Path) -> None:
    names = {path.relative_to(root / "out").as_posix() for path in (root / "out").rglob("*.*")}
    assert names >= {
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "1/model.onnx",
        "config.json",
        "config.pbtxt",
        "config_sentence_transformers.json",
        "export.json",
        "model.safetensors",
        "modules.json",
        "onnx/model.onnx",
        "onnx/model_quantized.onnx",
        "openvino/openvino_model.bin",
        "openvino/openvino_model.xml",
        "sentence_bert_config.json",
        "tokenizer.json",
        "vocab.txt",
    }
    for name in ("onnx/model_quantized.onnx", "1/model.onnx"):
        assert (root / "out" / name).samefile(root / "out/onnx/model.onnx")
    assert "onnx/model_quantized.onnx" in json.loads((root / "out/qdqpatch.json").read_text())["files"]


def test_the_tokenizer_is_complete_for_servers(root: Path) -> None:
    """In one file, which neither cuts nor pads; and its settings say what FastEmbed asks for."""
    found = Tokenizer.from_file(str(root / "out/tokenizer.json"))
    expected = AutoTokenizer.from_pretrained(root / "float")
    long = " ".join(TEXTS * 3)
    assert found.encode(long).ids == expected(long)["input_ids"]
    assert (found.padding, found.truncation) == (None, None)
    settings = json.loads((root / "out/tokenizer_config.json").read_text())
    assert (settings["model_max_length"], settings["pad_token"]) == (12, "[PAD]")


def test_the_record_and_the_card_say_what_was_done(root: Path) -> None:
    record = json.loads((root / "out/qdqpatch.json").read_text())
    assert record["recipe"]["quant_method"] == "qdqpatch"
    assert record["calibration"]["method"] == "max"
    assert record["calibration"]["smooth_inputs"] is False
    assert record["calibration"]["max_length"] == 12  # where the folder says that texts are cut
    assert record["calibration"]["samples"] == len(TEXTS)
    digest = hashlib.sha256((root / "texts.txt").read_bytes()).hexdigest()
    assert record["data"] == {"name": "texts.txt", "sha256": digest}
    assert record["versions"]["torch"] == torch.__version__
    assert set(record["exports"]) == {"onnx/model.onnx", "openvino/openvino_model.xml"}
    texts = [canary["text"] for canary in record["canaries"]]
    tokenizer = AutoTokenizer.from_pretrained(root / "out")
    batch = dict(tokenizer(texts, padding=True, return_tensors="np"))
    session = ENGINES["onnxruntime"].load(root / "out/onnx/model.onnx")
    found = torch.from_numpy(session.run(batch)["sentence_embedding"])
    vectors = torch.tensor([canary["vector"] for canary in record["canaries"]])
    assert torch.nn.functional.cosine_similarity(found, vectors).min() > 0.999
    card = (root / "out/README.md").read_text()
    assert card.startswith("---\nlicense: mit\n---\n# A tiny embedder\n\n<!-- qdqpatch -->\n## Int8\n")
    assert card.count("## Int8") == 1
    for part in (record["variant"], "method max", digest[:16], "`onnx/model.onnx`", "16 of 17"):
        assert part in card


def test_our_own_folder_may_be_replaced(root: Path) -> None:
    result = invoke(
        "export", root / "out", root / "other", "--target", "openvino", "--no-check", "--shape", "1x8"
    )
    assert result.exit_code == 0, result.output
    result = invoke("export", root / "out", root / "other", "--no-check", "--shape", "1x8", "--force")
    assert result.exit_code == 0, result.output
    assert not (root / "other/openvino").exists()
    assert (root / "other/1_Pooling/config.json").exists()
    assert json.loads((root / "other/export.json").read_text())["export_format"] == "onnx"


def test_eval_pools_as_the_folder_says(root: Path, expected: torch.Tensor) -> None:
    result = invoke(
        "eval", root / "float", root / "out", "--engine", "torch", "--data", root / "texts.txt", "--json"
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["results"]
    cosine = torch.nn.functional.cosine_similarity(embeddings(root / "out"), expected).mean()
    assert np.isclose(rows[1]["metrics"]["cosine"], float(cosine), atol=1e-5)


def test_several_targets_from_python_are_those_of_the_command(root: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(root / "out")
    options = {"source": root / "float", "tokenizer": AutoTokenizer.from_pretrained(root / "float")}
    found = qdqpatch.export(model, tmp_path / "out", ("onnxruntime", "openvino"), triton=True, **options)
    assert (found.target, [other.target for other in found.also]) == ("onnxruntime", ["openvino"])
    assert all(one.file.is_file() and one.comparisons for one in (found, *found.also))
    ours, theirs = (
        {path.relative_to(folder) for path in folder.rglob("*")}
        for folder in (tmp_path / "out", root / "out")
    )
    assert {str(path) for path in theirs - ours} == {"model.safetensors", "calibration.safetensors"}
    assert ours <= theirs


def test_two_targets_with_one_file_name_are_refused(root: Path) -> None:
    result = invoke("convert", root / "float", root / "x", "--export", "onnxruntime", "--export", "tensorrt")
    assert result.exit_code == 2
    assert "both write onnx/model.onnx: leave one out" in result.output


@pytest.mark.parametrize(
    ("options", "engine"),
    [
        ({}, "onnxruntime"),
        ({"backend": "onnx"}, "onnxruntime"),
        ({"backend": "openvino"}, "openvino"),
        ({"model_kwargs": {"engine": "openvino"}}, "openvino"),
        ({"model_kwargs": {"engine": "torch"}}, "torch"),
    ],
)
def test_sentence_transformers(
    options: dict[str, object], engine: str, root: Path, expected: torch.Tensor, tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers")
    folder = str(root / "out")
    model = library.SentenceTransformer(folder, device="cpu", trust_remote_code=True, **options)
    assert_int8(model.encode(TEXTS, convert_to_tensor=True), expected)
    inner = model[0].model
    assert model.max_seq_length == 12
    if engine == "torch":
        assert is_quantized(inner)
    else:
        assert type(inner).__name__ == "EngineModel"
        model.save_pretrained(str(tmp_path / "saved"))
        again = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
        assert (again.encode(TEXTS) == model.encode(TEXTS)).all()


def test_sentence_transformers_never_loads_the_float_model(root: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        library.SentenceTransformer(str(root / "out"), device="cpu")
    folder = str(shutil.copytree(root / "out", tmp_path / "out"))
    shutil.rmtree(tmp_path / "out/openvino")
    options = {"device": "cpu", "trust_remote_code": True}
    with pytest.raises(CheckpointError, match=r"has no file for openvino\. Write one: qdqpatch export"):
        library.SentenceTransformer(folder, backend="openvino", **options)
    with pytest.raises(ConfigError, match="There is no engine 'tpu'; there are torch, onnxruntime, openvino"):
        library.SentenceTransformer(folder, model_kwargs={"engine": "tpu"}, **options)


def test_ranges_that_are_found_while_running_are_not_exact(root: Path, tmp_path: Path) -> None:
    invoke("export", root / "float", tmp_path / "float", "--float")
    rows = AutoTokenizer.from_pretrained(root / "out")(TEXTS)["input_ids"]

    def found(file: Path) -> Exactness | None:
        return exactness(lambda threads: ONNX_RUNTIME.load(file, threads), rows)

    static = found(root / "out/onnx/model.onnx")
    assert static == Exactness(1.0, 1.0, 1.0)
    quantize_dynamic(tmp_path / "float/onnx/model.onnx", tmp_path / "dynamic.onnx")
    dynamic = found(tmp_path / "dynamic.onnx")
    assert dynamic is not None
    assert dynamic.batch < 1
    assert str(dynamic).startswith("batch 16 = batch 1: ")
    assert not Exactness(0.99, 1.0, 1.0).holds
    assert str(Exactness(0.99, 1.0, 0.999999)) == (
        "batch 16 = batch 1: no (cosine 0.9900), padded = not padded: yes, "
        f"{THREADS} threads = 1: to rounding (0.999999)"
    )


def test_a_float_file_says_that_it_is_one(root: Path, tmp_path: Path) -> None:
    result = invoke("export", root / "float", tmp_path / "out", "--float", "--cpu", "avx2")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out"
    assert not (folder / "onnx/model_quantized.onnx").exists()
    entry = json.loads((folder / MANIFEST).read_text())["exports"]["onnx/model.onnx"]
    assert (entry["float"], entry["cpu"], entry["matmuls"]) == (True, "avx2", None)
    outputs = ENGINES["onnxruntime"].load(folder / "onnx/model.onnx").run_tensors(tokens(folder))
    torch.testing.assert_close(torch.from_numpy(outputs["sentence_embedding"]), embeddings(root / "float"))
    for name in ("query x key", "linear", "residual add"):
        paths = [
            [site.path for site in read_sites(file / "onnx/model.onnx") if site.operation == name]
            for file in (folder, root / "out")
        ]
        assert paths[0] == paths[1]
        assert paths[0][0].startswith("encoder.layer.0.attention.")
    result = invoke("export", root / "out", tmp_path / "again", "--float")
    assert "is for the float one" in result.stderr
