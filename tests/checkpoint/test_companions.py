"""Files beside the weights: carried along, read, and refused where they name what is not there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import invoke
from sentence_folders import DENSE, POOLING, SIZE, TEXTS, write, write_embedder

from qdqpatch.checkpoint.companions import read_companions
from qdqpatch.checkpoint.sentence_head import load_sentence_head
from qdqpatch.checkpoint.tokenizer import load_tokenizer
from qdqpatch.errors import CheckpointError, CheckpointWarning, ConfigError
from qdqpatch.nn.pooling import POOLINGS
from qdqpatch.tasks import make_task
from qdqpatch.tasks.unlabelled import Text

PROMPTS = {"prompts": {"query": "a ", "passage": ""}}


@pytest.fixture
def embedder(tmp_path: Path) -> Path:
    return write_embedder(tmp_path / "embedder", dense=True, **PROMPTS)


def test_all_files_that_modules_name_are_carried_along(embedder: Path, tmp_path: Path) -> None:
    (embedder / "1_Pooling/deeper").mkdir()
    (embedder / "1_Pooling/deeper/more.txt").write_text("text")
    (embedder / "other.txt").write_text("not ours to take")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text("of its own")
    companions = read_companions(str(embedder))
    companions.copy(tmp_path / "out")
    carried = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert carried == {
        "README.md",
        "1_Pooling/config.json",
        "1_Pooling/deeper/more.txt",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "config_sentence_transformers.json",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
    for name in carried - {"README.md"}:
        assert (tmp_path / "out" / name).read_bytes() == (embedder / name).read_bytes()
    assert (tmp_path / "out/README.md").read_text() == "of its own"


def test_a_transformer_apart_from_its_modules_is_told_of(embedder: Path, tmp_path: Path) -> None:
    """As an older sentence-transformers wrote them."""
    old = tmp_path / "old"
    shutil.copytree(embedder, old / "0_Transformer")
    (old / "0_Transformer/modules.json").unlink()
    listed = json.loads((embedder / "modules.json").read_text())
    write(old / "modules.json", [listed[0] | {"path": "0_Transformer"}, *listed[1:]])
    with pytest.warns(CheckpointWarning) as caught:
        assert read_companions(str(old / "0_Transformer")).modules == ()
    assert len(caught) == 1
    result = invoke("convert", old / "0_Transformer", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.stderr.count(f"Warning: {caught[0].message}\n") == 1
    assert f"SentenceTransformer({str(old)!r})" in result.stderr
    for other in ("[]", "{", json.dumps(listed)):
        (old / "modules.json").write_text(other)
        read_companions(str(old / "0_Transformer"))


def test_what_is_read(embedder: Path) -> None:
    companions = read_companions(str(embedder))
    assert [module.kind for module in companions.modules] == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert (companions.max_length, companions.default_prompt) == (12, None)
    assert companions.prompt() == ""
    assert companions.prompt("query") == "a "
    assert companions.text("The Cat", "a ") == "a The Cat"
    with pytest.raises(ConfigError, match=r"has no prompt 'q'; there are query, passage \(config_sent"):
        companions.prompt("q")
    write(embedder / "sentence_bert_config.json", {"do_lower_case": True})
    assert read_companions(str(embedder)).text("The Cat", "A ") == "A the cat"


def test_a_checkpoint_without_modules_has_none(tmp_path: Path) -> None:
    companions = read_companions(str(tmp_path))
    assert (companions.modules, dict(companions.files), companions.max_length) == ((), {}, None)
    assert load_sentence_head(companions) is None


def test_bad_folders_are_refused_in_one_line(embedder: Path) -> None:
    modules = json.loads((embedder / "modules.json").read_text())

    def refused(pattern: str) -> None:
        with pytest.raises(CheckpointError, match=pattern) as caught:
            load_sentence_head(read_companions(str(embedder)))
        assert "\n" not in str(caught.value)

    shutil.move(embedder / "2_Dense/model.safetensors", embedder / "dense")
    refused(r"names 2_Dense \(Dense\), which has no weights: neither model.safetensors nor pytorch_model.bin")
    (embedder / "2_Dense/model.safetensors").write_bytes(b"junk")
    refused("Cannot read the weights in 2_Dense of")
    shutil.move(embedder / "dense", embedder / "2_Dense/model.safetensors")
    write(embedder / "2_Dense/config.json", {"in_features": SIZE, "out_features": DENSE + 1})
    refused("Cannot build Dense from 2_Dense of .*size mismatch")
    write(
        embedder / "2_Dense/config.json", {"in_features": 3, "out_features": 3, "activation_function": "os.x"}
    )
    refused(r"Cannot build Dense from 2_Dense of .*the activation 'os.x' is none of torch.nn")
    (embedder / "2_Dense/config.json").unlink()
    refused(r"names 2_Dense \(Dense\), which has no config.json")
    write(
        embedder / "modules.json", [*modules[:2], modules[2] | {"type": "sentence_transformers.models.Odd"}]
    )
    refused("names a Odd, which is not known here; known are Transformer, Pooling, Dense")
    write(embedder / "1_Pooling/config.json", {"pooling_mode": "median"})
    refused("1_Pooling of .* has the pooling 'median', which is not known here; known are cls, max, mean")
    shutil.rmtree(embedder / "1_Pooling")
    refused(r"names 1_Pooling \(Pooling\), which has no config.json")
    write(embedder / "modules.json", [modules[0], modules[1] | {"path": "../elsewhere"}])
    refused("names ../elsewhere, which is not inside it")
    write(embedder / "modules.json", [modules[0] | {"path": "0_Transformer"}])
    refused("names 0_Transformer for the transformer, which is read here from the root alone")
    for broken, pattern in (("{", "Cannot read"), ('{"a": 1}', "no list of modules"), ("[1]", "no list of")):
        (embedder / "modules.json").write_text(broken)
        refused(pattern)
    (embedder / "modules.json").unlink()
    write(embedder / "config_sentence_transformers.json", PROMPTS | {"default_prompt_name": "q"})
    refused("default_prompt_name in config_sent.* is 'q', which is none of its prompts: query, passage")
    write(embedder / "config_sentence_transformers.json", {"prompts": [1]})
    refused("must be texts by their names")
    for wrong in (0, True, "8"):
        write(embedder / "config_sentence_transformers.json", {"truncate_dim": wrong})
        refused(f"truncate_dim of .* must be a number of dimensions, not {wrong!r}")
    write(embedder / "sentence_bert_config.json", {"max_seq_length": "long"})
    (embedder / "config_sentence_transformers.json").unlink()
    refused("must be a number of tokens, not 'long'")


@pytest.mark.parametrize("mode", [*POOLINGS, ("cls", "mean")])
@pytest.mark.parametrize("left", [False, True])
def test_pooling_is_that_of_sentence_transformers(
    mode: str | tuple[str, ...], left: bool, tmp_path: Path
) -> None:
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    folder = write_embedder(tmp_path / "embedder", POOLING | {"pooling_mode": mode})
    head = load_sentence_head(read_companions(str(folder)))
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(3, 7, SIZE, generator=generator)
    mask = (torch.arange(7) < torch.tensor([[7], [4], [1]])).long()
    mask = mask.flip(1) if left else mask
    features = {"token_embeddings": states, "attention_mask": mask}
    expected = modules.Pooling(SIZE, mode)(features)["sentence_embedding"]
    expected = torch.nn.functional.normalize(expected, dim=-1)
    assert torch.equal(head(states, mask), expected)
    write(folder / "config_sentence_transformers.json", {"truncate_dim": 8})
    assert torch.equal(load_sentence_head(read_companions(str(folder)))(states, mask), expected[:, :8])


def test_older_settings_of_pooling_are_read(tmp_path: Path) -> None:
    for settings, expected in (
        ({"pooling_mode_cls_token": False, "pooling_mode_max_tokens": True}, ("max",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
        ({}, ("mean",)),
    ):
        folder = write_embedder(tmp_path / "embedder", settings)
        assert load_sentence_head(read_companions(str(folder))).pooling.modes == expected


def test_embeddings_are_those_of_sentence_transformers(embedder: Path, tmp_path: Path) -> None:
    """Prompt, cut, pooling, Dense and Normalize: the task's vectors are those of `encode`."""
    library = pytest.importorskip("sentence_transformers")
    write(embedder / "config_sentence_transformers.json", PROMPTS | {"default_prompt_name": "query"})
    texts = [*TEXTS, "the cat sat on the mat and the dog sat on the mat , a cat"]
    expected = library.SentenceTransformer(str(embedder), device="cpu").encode(texts)
    from qdqpatch.checkpoint.source import open_checkpoint
    from qdqpatch.evaluation.predicting import predict, torch_run

    source = open_checkpoint(str(embedder))
    tokenizer = load_tokenizer(str(embedder))
    task = make_task(None, tokenizer, source.config, companions=read_companions(str(embedder)))
    features = task.features([Text(text) for text in texts])
    assert max(map(task.length, features)) == 12
    found = predict(torch_run(source.load()[0].eval()), task, features)
    vectors = torch.tensor([output["embedding"].tolist() for output in found])
    assert vectors.shape == (5, DENSE)
    torch.testing.assert_close(vectors, torch.from_numpy(expected), atol=2e-6, rtol=0)  # fp32 against fp64


def test_convert_keeps_the_embedder(embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[CLS] stays [CLS]: the converted folder gives vectors close to the float ones, and of length 1."""
    library = pytest.importorskip("sentence_transformers")
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("\n".join(TEXTS))
    result = invoke("convert", "embedder", "int8", "--calib", "texts.txt", "--method", "max")
    assert result.exit_code == 0, result.output
    vectors = [
        library.SentenceTransformer(name, device="cpu").encode(TEXTS, convert_to_tensor=True)
        for name in ("embedder", "int8")
    ]
    cosine = (vectors[0] * vectors[1]).sum(1)
    assert torch.allclose(vectors[1].norm(dim=1), torch.ones(4))
    assert cosine.min() > 0.98
    assert cosine.max() < 1 - 1e-6  # and it is not the float model
    for option, line in (
        (["--prompt", "q"], "Error: embedder has no prompt 'q'; there are query, passage"),
        (["--prompt", "query", "--max-length", 4], "Wrote again: "),
    ):
        result = invoke("convert", "embedder", "again", "--calib", "texts.txt", "--method", "max", *option)
        assert line in " ".join(result.output.split())
    (tmp_path / "embedder/2_Dense/config.json").unlink()
    result = invoke("convert", "embedder", "third")
    assert result.exit_code == 1
    assert result.output.startswith(
        "Error: modules.json of embedder names 2_Dense (Dense), which has no config"
    )
