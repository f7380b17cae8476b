"""Texts to calibrate with: every source, what is drawn, what cannot be read, and how it is batched."""

import gzip
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import datasets
import models
import pytest
import torch
from checkpoints import write_checkpoint
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from qdqpatch.calibration import text_batches
from qdqpatch.data.batches import TextBatches
from qdqpatch.data.lengths import position_limit, shortness
from qdqpatch.data.sampling import random_order, reservoir
from qdqpatch.data.texts import Texts, read_texts
from qdqpatch.errors import CalibrationError, CalibrationWarning, ConfigError

Write = Callable[[str, "str | bytes"], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a file into an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: str | bytes) -> Path:
        data = content.encode() if isinstance(content, str) else content
        Path(name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return Path(name)

    return write


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(write_checkpoint(tmp_path_factory.mktemp("tokenizer")))


def rows(data: object, *columns: str | None, **options: object) -> list[tuple[str, str | None]]:
    return read_texts(data, *columns, **options).rows


PLAIN = [("the cat", None), ("a dog", None)]
PAIRS = [("the cat", "sat"), ("a dog", "and")]
FILES = {
    "a.txt": ("the cat\n\n  \n a dog", PLAIN),
    "A.TXT": ("the cat\ra dog\r", PLAIN),
    "a.csv": ('id,text\n1,"the cat"\n2,a dog\n', PLAIN),
    "b.csv": ("SENTENCE1,label,Sentence2\nthe cat,0,sat\n\na dog,1,and\n", PAIRS),
    "c.csv": ("anything\nthe cat\na dog\n", PLAIN),
    "d.csv": ("label,remark\n1,the cat\n2,a dog\n", PLAIN),
    "e.csv": ('text\n"the\n""cat"", and"\na dog\n', [('the\n"cat", and', None), ("a dog", None)]),
    "a.tsv": ("sentence\tlabel\nthe cat\t1\na dog\t0\n", PLAIN),
    "b.tsv": ('text\n"the cat\na "dog", and\n', [('"the cat', None), ('a "dog", and', None)]),
    "a.jsonl": ('{"text": "the cat", "n": 1}\n\n{"text": "a dog"}\n', PLAIN),
    "b.jsonl": (
        '{"premise": "the cat", "hypothesis": "sat"}\n{"hypothesis": "and", "premise": "a dog"}',
        PAIRS,
    ),
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", FILES)
def test_every_format_also_with_a_byte_order_mark_and_other_line_ends(
    write: Write, name: str, suffix: str
) -> None:
    content, expected = FILES[name]
    assert rows(write(name + suffix, content)) == expected
    assert rows(str(write(name + suffix, "\ufeff" + content))) == expected
    if "\r" not in content and '"the\n' not in content:
        assert rows(write(name + suffix, content.replace("\n", "\r\n"))) == expected


def test_columns_that_are_named_are_taken(write: Write) -> None:
    file = write("a.csv", "text,title,n\none two,three,1\n")
    assert rows(file) == [("one two", None)]
    assert rows(file, "title") == [("three", None)]
    assert rows(file, "title", "text") == [("three", "one two")]
    assert read_texts(file, "title", "text").columns == ("title", "text")
    assert read_texts(file).columns == ("text", None)


def test_columns_that_are_not_there_or_not_clear(write: Write) -> None:
    for name, content in (
        ("a.csv", "left,right\nhere and,there and\n"),
        ("a.jsonl", '{"left": "here and", "right": "there and"}\n'),
    ):
        with pytest.raises(CalibrationError, match=rf"{name}: .* not clear, .* left, right\..*--text-column"):
            rows(write(name, content))
    with pytest.raises(CalibrationError, match=r"a\.csv has no column 'middle'; it has left, right\."):
        rows("a.csv", "left", "middle")
    with pytest.raises(CalibrationError, match=r"a\.jsonl: 1 of 1 lines .* line 1 has no field 'middle'"):
        rows("a.jsonl", "middle")
    with pytest.raises(CalibrationError, match=r"s\.csv .* 'text;label' .* ';'"):
        rows(write("s.csv", "text;label\nthe cat;1\n"))
    with pytest.raises(CalibrationError, match="does not name its columns in its first line"):
        rows(write("q.csv", 'te"xt,"label" x\nthe cat,1\n'))
    with pytest.raises(ConfigError, match="text_pair_column needs text_column"):
        rows("a.csv", None, "left")


BAD_LINES = {
    "utf8.txt": (b"ok\n\nb\xe9d\nok\nok\n\xff\n", "2 of 5 lines left out; line 3 is not UTF-8 text"),
    "nul.txt": (b"ok\nok\n\0\n", "1 of 3 lines left out; line 3 is not UTF-8 text"),
    "narrow.csv": (b"text,n\nok,1\nbad\nok,2\n", "1 of 3 lines left out; line 3 has 1 columns where the"),
    "wide.tsv": (b"text\tn\nbad\t1\t2\nok\t1\nok\t1\n", "line 2 has 3 columns where the first line names 2"),
    "quote.csv": (b'text,n\nok,1\n"bad"x,2\nok,3\n', "1 of 3 lines left out; line 3 is not valid CSV"),
    "open.csv": (b'text\nok\nok\nok\n"bad\nworse\n', "2 of 5 lines left out; line 5 is not valid CSV"),
    "empty.csv": (b"text,n\nok,1\n  ,2\nok,3\n", "line 3 has nothing in 'text'"),
    "broken.jsonl": (b'{"text": "ok"}\n{"text": \n{"text": "ok"}\n', "line 2 is not JSON"),
    "list.jsonl": (b'{"text": "ok"}\n["bad"]\n{"text": "ok"}\n', "line 2 is JSON, but not an object"),
    "missing.jsonl": (b'{"text": "ok"}\n{"text": "ok"}\n{"other": "x"}\n', "line 3 has no field 'text'"),
    "number.jsonl": (b'{"text": "ok"}\n{"text": 3}\n{"text": "ok"}\n', "line 2 has int in 'text'"),
    "null.jsonl": (b'{"text": "ok"}\n{"text": null}\n{"text": "ok"}\n', "line 2 has nothing in 'text'"),
    "half.jsonl": (b'{"text": "ok"}\n{"text": "\\ud800"}\n', "1 of 2 lines left out; line 2 is not UTF-8"),
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", BAD_LINES)
def test_lines_that_cannot_be_read_are_left_out_and_told_of_once(
    write: Write, name: str, suffix: str
) -> None:
    content, message = BAD_LINES[name]
    file = write(name + suffix, content)
    with pytest.warns(CalibrationWarning) as caught:
        found = rows(file)
    assert len(caught) == 1
    assert str(caught[0].message).startswith(f"{file}: ")
    assert message in str(caught[0].message)
    assert {text for text, _ in found} == {"ok"}


def test_a_named_field_may_be_missing_from_the_first_object(write: Write) -> None:
    file = write("a.jsonl", '{"other": 1}\n{"text": "ok"}\n{"text": "ok"}\n')
    with pytest.warns(CalibrationWarning, match="1 of 3 lines left out; line 1 has no field 'text'"):
        assert rows(file, "text") == [("ok", None)] * 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", r"a\.txt has no text to calibrate with"),
        ("a.txt", "\n \n", r"a\.txt has no text to calibrate with"),
        ("a.csv", "text,label\n", r"a\.csv has no text to calibrate with"),
        ("a.txt", "one\n".encode("utf-16"), r"a\.txt: 2 of 2 lines cannot be read; line 1 is not UTF-8 text"),
        ("a.jsonl", '{"text": "ok"}\n[]\n[]\n', r"a\.jsonl: 2 of 3 lines cannot be read; line 2 is JSON"),
        ("a.csv", 'text\nok\n"bad\nworse\nworst\n', r"a\.csv: 3 of 4 lines cannot be read; line 3 is not"),
        ("a.parquet", "", r"a\.parquet does not tell its format: .*\.txt, \.csv, \.tsv, \.jsonl"),
    ],
)
def test_files_that_cannot_be_used(write: Write, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        rows(write(name, content))


def test_damaged_gzip_files(write: Write) -> None:
    # Longer than what gzip reads ahead, so that the damage shows only after good lines.
    data = gzip.compress(b"".join(b"%d the cat\n" % (i * i) for i in range(50_000)))
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    for content in (data[: len(data) // 2], data[:-4], bytes(flipped), b"plain text", data[:7]):
        Path("a.txt.gz").write_bytes(content)
        with pytest.raises(CalibrationError, match=r"a\.txt\.gz is damaged, or is not gzipped at all"):
            rows("a.txt.gz")


def test_paths_that_are_no_files(write: Write) -> None:
    Path("folder").mkdir()
    with pytest.raises(CalibrationError, match=r"folder is a folder; name a file"):
        rows("folder")
    for missing in ("missing.txt", "missing.csv.gz", Path("missing")):
        with pytest.raises(CalibrationError, match=rf"^There is no file {missing}\.$"):
            rows(missing)
    for no_name in ("./missing", "a/b/c", "The cat sat on the mat.", "x" * 5000):
        with pytest.raises(CalibrationError, match=r"There is no file .* no name of a data set"):
            rows(no_name)


def test_a_draw_is_uniform_repeatable_and_keeps_the_order(write: Write) -> None:
    texts = [f"text {i}" for i in range(100)]
    file = write("a.txt", "\n".join(texts))
    for data in (file, texts):
        first = read_texts(data, samples=20)
        assert (len(first.rows), len(set(first.rows)), first.total) == (20, 20, 100)
        assert first.rows == rows(data, samples=20, seed=0)
        assert first.rows != rows(data, samples=20, seed=1)
        assert first.rows == sorted(first.rows, key=lambda row: texts.index(row[0]))
        for samples in (100, 101, None):
            assert rows(data, samples=samples, seed=3) == [(text, None) for text in texts]
    with pytest.raises(ConfigError, match="samples must be at least 1, not 0"):
        rows(file, samples=0)


@pytest.mark.parametrize(
    "draw", [lambda seed: reservoir(range(10), 3, seed)[0], lambda seed: list(random_order(10, seed))[:3]]
)
def test_every_item_is_as_likely_as_any_other(draw: Callable[[int], list[int]]) -> None:
    counts = [0] * 10
    for seed in range(2000):
        for item in draw(seed):
            counts[item] += 1
    # Each count is binomial, 2000 draws of probability 0.3: mean 600, deviation 20.5. Five of these.
    assert all(abs(count - 600) < 103 for count in counts), counts


def test_a_random_order_has_every_number_once() -> None:
    for count in (0, 1, 2, 50):
        assert sorted(random_order(count, 5)) == list(range(count))


def test_a_data_set(write: Write) -> None:
    data = datasets.Dataset.from_dict(
        {"question": ["the cat", "a dog"], "n": [1, 2], "context": ["sat", "and"]}
    )
    assert rows(data) == PAIRS
    assert rows(data, "question") == PLAIN
    assert read_texts(data.select(range(0, 2)), samples=1).total == 2
    with pytest.raises(CalibrationError, match="The data has no column 'text'; it has question, n, context"):
        rows(data, "text")
    with pytest.raises(CalibrationError, match=r"has the splits train, test: choose one"):
        rows(datasets.DatasetDict({"train": data, "test": data}))
    with pytest.raises(CalibrationError, match=r"cannot be read from a IterableDataset: give"):
        rows(data.to_iterable_dataset())
    with pytest.raises(CalibrationError, match="The data has no text"):
        rows(datasets.Dataset.from_dict({"text": []}))


def test_rows_without_text_are_replaced_by_others() -> None:
    texts = [None if i % 3 == 0 else f"text {i}" for i in range(90)]
    data = datasets.Dataset.from_dict({"text": texts})
    with pytest.warns(CalibrationWarning, match=r"The data: \d+ of \d+ rows left out; row \d+ has nothing"):
        drawn = rows(data, samples=30)
    assert len(set(drawn)) == 30
    with pytest.warns(CalibrationWarning, match="The data: 30 of 90 rows left out; row 0 has nothing in"):
        assert len(rows(data, samples=None)) == 60
    mostly_empty = datasets.Dataset.from_dict({"text": ["the cat"] + [None] * 1000})
    with pytest.raises(CalibrationError, match="20 of 20 rows cannot be read"):
        rows(mostly_empty, samples=10)


def test_lists_of_texts_and_of_pairs() -> None:
    assert rows(["the cat", "a dog"]) == PLAIN
    assert rows([("the cat", "sat"), ["a dog", "and"]]) == PAIRS
    with pytest.warns(CalibrationWarning, match="row 1 is no text, but tuple"):
        assert rows(["the cat", ("a", "b"), "a dog"]) == PLAIN
    with pytest.warns(CalibrationWarning, match="row 1 is no pair of texts, as row 0 is, but str"):
        assert rows([("the cat", "sat"), "ab", ("a dog", "and")]) == PAIRS
    for nothing in (b"bytes", {"text": ["a"]}, 3, None, iter(["a"])):
        with pytest.raises(CalibrationError, match=r"Texts cannot be read from a "):
            rows(nothing)


def test_a_hub_name_needs_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CalibrationError, match=r"no file nyu-mll/glue\. .*pip install \"qdqpatch\[data\]\""):
        rows("nyu-mll/glue")


def test_a_hub_data_set_is_loaded_by_name_subset_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load(*arguments: object, **options: object) -> datasets.Dataset:
        calls.append((arguments, options))
        return datasets.Dataset.from_dict({"sentence": ["the cat", "a dog"], "label": [0, 1]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = read_texts("stanfordnlp/sst2")
    assert found == Texts(PLAIN, "stanfordnlp/sst2", ("sentence", None), 2)
    rows("imdb", split="test[:10%]", subset="plain")
    assert calls == [
        (("stanfordnlp/sst2", None), {"split": "train"}),
        (("imdb", "plain"), {"split": "test[:10%]"}),
    ]


def test_hub_data_sets_that_are_not_there(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("json.json", '{"text": "must not be read"}')
    for name in ("json", "text", "csv"):
        with pytest.raises(CalibrationError, match=f"There is no file {name}, and {name} is a format"):
            rows(name)

    def fail(*arguments: object, **options: object) -> None:
        raise ValueError("Config name is missing.\nPlease pick one among\tsst2, cola")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        CalibrationError,
        match=r"^There is no file glue, .* set: Config name is missing. Please pick one among sst2, cola$",
    ):
        rows("glue")


def test_the_hub_cannot_be_reached() -> None:
    with pytest.raises(CalibrationError, match=r"There is no file no/such, and the hub gives no such"):
        rows("no/such")


def test_split_and_subset_are_for_the_hub(write: Write) -> None:
    file = write("a.txt", "the cat")
    for options in ({"split": "train"}, {"subset": "sst2"}):
        for data in (file, ["the cat"]):
            with pytest.raises(ConfigError, match="split and subset are for data sets on the hub"):
                rows(data, **options)


def test_batches_are_what_the_tokenizer_makes(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["the cat sat on the mat", "a dog", "and", "the mat.", "the cats"]
    batches = text_batches(texts, tokenizer, batch_size=2, max_length=7)
    expected = [
        tokenizer(texts[i : i + 2], padding=True, truncation=True, max_length=7, return_tensors="pt")
        for i in (0, 2, 4)
    ]
    assert len(batches) == 3
    for _ in range(2):  # some methods look at the data twice
        for actual, wanted in zip(batches, expected, strict=True):
            models.assert_equal(dict(actual), dict(wanted))
    assert batches.lengths == [7, 4, 3, 5, 5]


def test_pairs_are_tokenized_together(tokenizer: PreTrainedTokenizerBase) -> None:
    batches = text_batches([("the cat sat on the mat", "a dog")] * 3, tokenizer, max_length=8)
    batch = next(iter(batches))
    assert tokenizer.decode(batch["input_ids"][0]) == "[CLS] the cat sat [SEP] a dog [SEP]"
    assert batch["token_type_ids"][0].tolist() == [0] * 5 + [1] * 3


def test_columns_samples_and_seed_reach_the_batches(tokenizer: PreTrainedTokenizerBase) -> None:
    data = [{"a": "the " * i, "b": "the"} for i in range(1, 21)]
    batches = text_batches(data, tokenizer, "a", "b", samples=5, batch_size=5, seed=3, max_length=64)
    first = [row.count("the") for row in tokenizer.batch_decode(next(iter(batches))["input_ids"])]
    assert first == [text.count("the") + 1 for text, _ in rows(data, "a", "b", samples=5, seed=3)]


def test_batches_fit_the_model(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["the " * 50, "a dog"]
    model = models.uncalibrated("BertForMultipleChoice")
    (batch,) = text_batches(texts, tokenizer, model=model, max_length=64)
    assert {tuple(tensor.shape) for tensor in batch.values()} == {(2, 1, 32)}
    with torch.no_grad():
        assert model(**batch).logits.shape == (2, 1)
    assert next(iter(text_batches(texts, tokenizer, max_length=40)))["input_ids"].shape == (2, 40)
    with pytest.raises(CalibrationError, match="16 tokens and the model only 10: they do not belong"):
        text_batches(texts, tokenizer, model=models.build("BertModel", vocab_size=10))


def test_positions_that_roberta_leaves_for_padding_do_not_count() -> None:
    assert position_limit(models.build("BertModel", max_position_embeddings=20)) == 20
    embeddings = torch.nn.ModuleDict({"position_embeddings": torch.nn.Embedding(514, 4, padding_idx=1)})
    assert position_limit(embeddings) == 512
    assert position_limit(None) == sys.maxsize


def test_numbers_out_of_range(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1, not 0"):
        text_batches(["the cat"], tokenizer, batch_size=0)
    with pytest.raises(ConfigError, match="max_length must be more than the 2 special tokens, not 2"):
        text_batches(["the cat"], tokenizer, max_length=2)
    with pytest.raises(ConfigError, match="max_length must be more than the 3 special tokens, not 3"):
        text_batches([("the cat", "sat")], tokenizer, max_length=3)


def test_a_tokenizer_without_padding() -> None:
    bare = SimpleNamespace(pad_token=None, num_special_tokens_to_add=lambda pair: 0)
    with pytest.raises(CalibrationError, match="no padding token"):
        TextBatches([("the cat", None)], bare)


def test_short_sequences_are_told_of_unless_their_length_is_given(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    model = models.build()  # takes 32 tokens
    with pytest.warns(CalibrationWarning, match=r"up to 32 tokens, .* have at most 15 \(median 4\)"):
        text_batches(["the " * 13, "a dog", "a dog"], tokenizer, model=model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text_batches(["the " * 14, "a dog", "a dog"], tokenizer, model=model)
        text_batches(["a dog"], tokenizer, model=model, max_length=32)
        text_batches(["a dog"], tokenizer)  # nothing says what a model takes


def test_texts_are_cut_at_what_the_model_takes_and_512(tokenizer: PreTrainedTokenizerBase) -> None:
    long = ["the " * 2000]
    assert text_batches(long, tokenizer).lengths == [512]
    assert text_batches(long, tokenizer, model=models.build()).lengths == [32]
    with pytest.warns(CalibrationWarning, match=r"up to 1100 tokens, .* are cut at 512 \("):
        text_batches(long, tokenizer, model=models.build("BertModel", max_position_embeddings=1100))


def test_one_text_in_a_hundred_may_be_longer() -> None:
    assert "have at most 10 (median 10)" in (shortness([10] * 99 + [500], 512, 512) or "")
    assert shortness([10] * 98 + [500] * 2, 512, 512) is None
    assert shortness([255], 512, 512) is not None
    assert shortness([256], 512, 512) is None


def test_jsonl_fields_with_other_bytes_do_no_harm(write: Write) -> None:
    content = json.dumps({"text": "the cat", "name": "X"}).encode().replace(b"X", b"\xe9")
    assert rows(write("a.jsonl", content)) == [("the cat", None)]
