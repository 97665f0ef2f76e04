import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreflow.models.data.corpus import Pair, read_corpus
from coreflow.models.errors import InputError

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def corpus(tmp_path: Path) -> Write:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    "content",
    ["the fox slept\n\n   \nthe cat sang\n", "the fox slept\r\nthe cat sang", "\ufeffthe fox slept\n  the cat sang  "],
    ids=["blank lines", "Windows line ends", "byte order mark and margins"],
)
def test_plain_text_gives_a_sentence_a_line(corpus: Write, content: str | bytes) -> None:
    expected = [Pair("the fox slept", "the fox slept"), Pair("the cat sang", "the cat sang")]
    assert read_corpus(corpus("corpus.txt", content)) == expected


def test_jsonl_gives_texts_and_questions_with_answers(corpus: Write) -> None:
    content = '{"text": "the fox slept", "tokens": [1]}\n\n{"question": "who sang ?", "answer": "the cat"}\n{"text": " "}\n'
    assert read_corpus(corpus("corpus.jsonl", content)) == [Pair("the fox slept", "the fox slept"), Pair("who sang ?", "the cat")]


def test_a_brace_in_plain_text_is_text(corpus: Write) -> None:
    assert read_corpus(corpus("corpus.txt", '{"text": 1}')) == [Pair('{"text": 1}', '{"text": 1}')]


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=1, max_size=8))
def test_every_text_that_json_can_hold_survives_a_round_trip(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"question": text, "answer": text[::-1]}) + "\n" for text in texts), encoding="utf-8")
    assert read_corpus(path) == [Pair(text.strip(), text[::-1].strip()) for text in texts]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\xfffox", "byte 1 is no UTF-8"),
        (b"{", "no JSON"),
        (b"the fox slept", "no JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'["fox"]', "JSON of type list"),
        (b"{}", "without question and answer; it has nothing"),
        (b'{"txt": "fox"}', "without question and answer; it has 'txt'"),
        (b'{"question": "who?"}', "without answer; it has 'question'"),
        (b'{"text": 5}', "text is a int, not a string"),
        (b'{"question": "who?", "answer": null}', "answer is a NoneType, not a string"),
        (b'{"text": "\\ud800"}', "no Unicode"),
    ],
    ids=["bytes", "truncated", "plain", "deep", "list", "empty", "other key", "half a pair", "number", "null", "surrogate"],
)
def test_a_line_that_is_no_pair_is_refused_by_number(corpus: Write, line: bytes, message: str) -> None:
    with pytest.raises(InputError, match=f"corpus.jsonl, line 3: .*{message}"):
        read_corpus(corpus("corpus.jsonl", b'{"text": "fox"}\n\n' + line + b'\n{"text": "cat"}\n'))


def test_plain_text_in_another_encoding_is_refused_by_line(corpus: Write) -> None:
    with pytest.raises(InputError, match=r"corpus\.txt, line 2: byte 4 is no UTF-8; save the corpus as UTF-8"):
        read_corpus(corpus("corpus.txt", "fox\ncafé\n".encode("latin-1")))


@pytest.mark.parametrize(
    ("name", "content", "looked_at", "usable"),
    [
        ("corpus.txt", "", 0, "one sentence"),
        ("corpus.txt", "\n \n\t\n", 3, "one sentence"),
        ("corpus.jsonl", '{"text": ""}\n{"question": "who?", "answer": " "}\n', 2, 'an object with a "text"'),
    ],
    ids=["empty", "blank", "blank strings"],
)
def test_a_corpus_without_a_usable_line_is_refused_with_the_format_and_a_count(
    corpus: Write, name: str, content: str | bytes, looked_at: int, usable: str
) -> None:
    with pytest.raises(InputError, match=f"no usable line among {looked_at}; a usable line is {usable}"):
        read_corpus(corpus(name, content))


def test_a_json_document_is_refused_rather_than_learned_as_text(corpus: Write) -> None:
    with pytest.raises(InputError, match="line 1: no JSON"):
        read_corpus(corpus("corpus.json", '[\n  {"text": "fox"}\n]'))


@pytest.mark.parametrize("name", ["missing.txt", "."], ids=["missing", "directory"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot read the corpus"):
        read_corpus(tmp_path / name)
