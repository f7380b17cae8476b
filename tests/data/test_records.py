"""Files of texts: every format, and what of them cannot be read."""

import gzip
import json
from pathlib import Path

import pytest
from texts import PAIRS, PLAIN, Write, rows

from qdqpatch.data.texts import read_texts
from qdqpatch.errors import CalibrationError, CalibrationWarning, ConfigError

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
        with pytest.raises(
            CalibrationError, match=rf"{name}: .* not clear, .* left, right\. Name it with text_column"
        ):
            rows(write(name, content))
    with pytest.raises(CalibrationError, match=r"a\.csv has no column 'middle'; it has left, right\."):
        rows("a.csv", "left", "middle")
    with pytest.raises(CalibrationError, match=r"a\.jsonl: 1 of 1 line .* line 1 has no field 'middle'"):
        rows("a.jsonl", "middle")
    with pytest.raises(CalibrationError, match=r"s\.csv .* 'text;label' .* ';'"):
        rows(write("s.csv", "text;label\nthe cat;1\n"))
    with pytest.raises(CalibrationError, match="does not name its columns in its first line"):
        rows(write("q.csv", 'te"xt,"label" x\nthe cat,1\n'))
    with pytest.raises(ConfigError, match="text_pair_column needs text_column"):
        rows("a.csv", None, "left")


BAD_LINES = {
    "utf8.txt": (b"ok\n\nb\xe9d\nok\nok\n\xff\n", "2 of 5 lines left out; line 3 is not UTF-8 text"),
    "nul.txt": (b"ok\nok\n\0\n", "1 of 3 lines left out; line 3 has a NUL character in 'text'"),
    "narrow.csv": (b"text,n\nok,1\nbad\nok,2\n", "1 of 3 lines left out; line 3 has 1 column where the"),
    "wide.tsv": (b"text\tn\nbad\t1\t2\nok\t1\nok\t1\n", "line 2 has 3 columns where the first line names 2"),
    "long.csv": (
        b"text\nok\n" + b"word " * 30_000 + b"\nok\n",
        "line 3 has a cell of more than 131072 characters, the most that Python's reader of CSV takes",
    ),
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


def test_a_text_may_be_as_long_as_a_book(write: Write) -> None:
    book = "word " * 30_000
    for name, content in (("a.tsv", f"text\tn\n{book}\t1\n"), ("a.jsonl", json.dumps({"text": book}))):
        assert [text.split() for text, _ in rows(write(name, content))] == [["word"] * 30_000]


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
        (
            "a.json",
            '{"text": "ok"}\n{"text": "ok"}\n',
            r"a\.json has a JSON object on each line: name it a\.jsonl",
        ),
        (
            "a.json",
            '[{"text": "ok"}]',
            r"has to be: .* one JSON object on each line, in a file named a\.jsonl\.",
        ),
        (
            "a.json",
            '{"text": "ok"}',
            r"has to be: .* one JSON object on each line, in a file named a\.jsonl\.",
        ),
        ("a.bio", "EU B-ORG\n", r"a\.bio does not tell its format: .* \(words with tags: \.conll\)"),
        ("a.jsonl", '{"text": "ok"}\n[]\n[]\n', r"a\.jsonl: 2 of 3 lines cannot be read; line 2 is JSON"),
        ("a.csv", 'text\nok\n"bad\nworse\nworst\n', r"a\.csv: 3 of 4 lines cannot be read; line 3 is not"),
        ("a.orc", "", r"a\.orc does not tell its format: .*\.txt, \.csv, \.tsv, \.jsonl"),
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


def test_jsonl_fields_with_other_bytes_do_no_harm(write: Write) -> None:
    content = json.dumps({"text": "the cat", "name": "X"}).encode().replace(b"X", b"\xe9")
    assert rows(write("a.jsonl", content)) == [("the cat", None)]


def test_questions_of_squad_are_pairs(write: Write) -> None:
    paragraphs = [
        {"context": "the cat sat", "qas": [{"id": "a", "question": "who"}, {"id": "b", "question": "what"}]},
        {"context": "a dog", "qas": [{"id": "c", "question": "who"}]},
    ]
    text = json.dumps({"data": [{"paragraphs": paragraphs}]})
    wanted = [("who", "the cat sat"), ("what", "the cat sat"), ("who", "a dog")]
    assert rows(write("a.json", text)) == wanted
    assert rows(write("a.json.gz", text)) == wanted
    with pytest.raises(CalibrationError, match=r"b\.json is not in SQuAD's layout: it has no list 'data'"):
        rows(write("b.json", "{}"))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding(write: Write, encoding: str, suffix: str) -> None:
    """Spreadsheets save "Unicode text" in UTF-16."""
    file = write(f"a.tsv{suffix}", "text\tlabel\r\nthe caf\u00e9\t1\r\na dog\t0\r\n".encode(encoding))
    assert rows(file) == [("the caf\u00e9", None), ("a dog", None)]
