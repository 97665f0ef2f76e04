import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreflow.models.data import grammar
from coreflow.models.data.tokenizers import TextTokenizer, train_unigram, train_wordpiece
from coreflow.models.errors import BundleError, ConfigError, InputError

Train = Callable[[Sequence[str], int], TextTokenizer]

CORPUS = grammar.sentences(0, 4000)
WORDPIECE = train_wordpiece(CORPUS, 512)
UNIGRAM = train_unigram(CORPUS, 512)
TRAINERS = pytest.mark.parametrize("train", [train_wordpiece, train_unigram], ids=["wordpiece", "unigram"])
KINDS = pytest.mark.parametrize(("tokenizer", "framing"), [(WORDPIECE, 2), (UNIGRAM, 1)], ids=["wordpiece", "unigram"])

words = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12)
spelled = st.lists(words | st.sampled_from(sorted(grammar.vocabulary())), min_size=1, max_size=20).map(" ".join)
anything = st.text(min_size=1, max_size=80).map(lambda text: f"x{text}")  # never without a word


@pytest.mark.parametrize(
    ("tokenizer", "pad", "eos", "unk"), [(WORDPIECE, 0, 3, 1), (UNIGRAM, 0, 1, 2)], ids=["wordpiece as BERT", "unigram as T5"]
)
def test_control_tokens_have_the_ids_of_their_convention(tokenizer: TextTokenizer, pad: int, eos: int, unk: int) -> None:
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (pad, eos, unk)


def test_wordpiece_frames_a_text_and_unigram_ends_it() -> None:
    assert WORDPIECE.encode("the fox", 6).ids[[0, 3, 4, 5]].tolist() == [2, 3, 0, 0]
    assert UNIGRAM.encode("the fox", 6).ids[[2, 3, 4, 5]].tolist() == [1, 0, 0, 0]


@KINDS
def test_a_word_of_the_grammar_is_one_token(tokenizer: TextTokenizer, framing: int) -> None:
    assert tokenizer.vocab_size <= 512
    assert {word for word in grammar.vocabulary() if tokenizer.encode(word, 16).mask.sum() != 1 + framing} == set()


@KINDS
@given(seed=st.integers())
def test_sentences_of_the_grammar_survive_encoding_and_decoding(tokenizer: TextTokenizer, framing: int, seed: int) -> None:
    for sentence in grammar.sentences(seed, 20):
        encoded = tokenizer.encode(sentence, 16)
        assert (encoded.dropped, encoded.unknown) == (0, ())
        assert tokenizer.decode(encoded.ids) == sentence


@KINDS
@given(text=spelled)
def test_words_never_seen_are_spelled_from_known_letters(tokenizer: TextTokenizer, framing: int, text: str) -> None:
    encoded = tokenizer.encode(text, 300)
    assert encoded.unknown == ()
    assert tokenizer.decode(encoded.ids) == text


@KINDS
@given(text=spelled | anything, length=st.integers(3, 24))
def test_any_text_gets_the_length_asked_for_and_dropped_tokens_are_counted(
    tokenizer: TextTokenizer, framing: int, text: str, length: int
) -> None:
    whole = tokenizer.encode(text, 400)
    cut = tokenizer.encode(text, length)
    tokens = int(cut.mask.sum(dtype=np.int64))
    assert (cut.ids.shape, cut.ids.dtype, cut.mask.shape, cut.mask.dtype) == (
        (length,),
        np.dtype(np.int32),
        (length,),
        np.dtype(np.float16),
    )
    assert tokens + cut.dropped == int(whole.mask.sum(dtype=np.int64)) + whole.dropped
    assert cut.mask.tolist() == [1.0] * tokens + [0.0] * (length - tokens)
    assert cut.ids[tokens - 1] == tokenizer.eos_id
    assert (cut.ids[:tokens] != tokenizer.pad_id).all()
    assert (cut.ids[tokens:] == tokenizer.pad_id).all()
    assert ((cut.ids >= 0) & (cut.ids < tokenizer.vocab_size)).all()
    assert cut.ids[: tokens - 1].tolist() == whole.ids[: tokens - 1].tolist()
    assert cut.unknown == whole.unknown
    assert bool(whole.unknown) == bool((whole.ids == tokenizer.unk_id).any())


@pytest.mark.parametrize(
    ("tokenizer", "text", "unknown"),
    [
        (WORDPIECE, "the фox met the 猫 and the 猫", ("фox", "猫")),
        (UNIGRAM, "the фox met the 猫 and the 猫", ("ф", "猫")),
        (WORDPIECE, "The Fox", ()),
        (UNIGRAM, "The fox", ("T",)),
        (UNIGRAM, "the </s> fox", ("</s>",)),
        (UNIGRAM, "<pad>", ("<pad>",)),
        (WORDPIECE, "the [SEP] fox [PAD]", ("[SEP]", "[PAD]")),
    ],
    ids=["word", "letters", "folded case", "kept case", "typed end", "typed padding", "typed separator"],
)
def test_unknown_pieces_are_listed_once_each_as_they_were_written(tokenizer: TextTokenizer, text: str, unknown: tuple[str, ...]) -> None:
    assert tokenizer.encode(text, 32).unknown == unknown


@KINDS
def test_a_control_token_in_a_text_does_not_become_control(tokenizer: TextTokenizer, framing: int) -> None:
    encoded = tokenizer.encode("fox </s> [SEP] [CLS] [PAD] <pad> fox", 64)
    inner = encoded.ids[framing - 1 : int(encoded.mask.sum()) - 1]
    assert not set(inner.tolist()) & {tokenizer.pad_id, tokenizer.eos_id}


@KINDS
@pytest.mark.parametrize("text", ["", " \t\n", "\u3000"], ids=["empty", "white space", "wide space"])
def test_text_without_a_word_is_refused(tokenizer: TextTokenizer, framing: int, text: str) -> None:
    with pytest.raises(InputError, match="no word in the text"):
        tokenizer.encode(text, 8)


@KINDS
def test_a_length_without_room_for_a_word_is_refused(tokenizer: TextTokenizer, framing: int) -> None:
    with pytest.raises(ConfigError, match=f"choose {framing + 1} or more"):
        tokenizer.encode("fox", framing)


@KINDS
def test_undecodable_bytes_are_refused(tokenizer: TextTokenizer, framing: int) -> None:
    with pytest.raises(InputError, match="character 5"):
        tokenizer.encode("fox \udcff", 8)


@KINDS
@pytest.mark.parametrize("foreign", [-1, 512], ids=["negative", "too large"])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer: TextTokenizer, framing: int, foreign: int) -> None:
    with pytest.raises(InputError, match="outside the vocabulary"):
        tokenizer.decode([5, foreign])


@KINDS
def test_a_saved_tokenizer_loads_equal_and_saves_the_same_bytes(tokenizer: TextTokenizer, framing: int, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "first.json")
    loaded = TextTokenizer.load(tmp_path / "first.json")
    loaded.save(tmp_path / "second.json")
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "second.json").read_bytes()
    assert loaded.vocab_size == tokenizer.vocab_size
    for sentence in CORPUS[:50]:
        assert loaded.encode(sentence, 12).ids.tolist() == tokenizer.encode(sentence, 12).ids.tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        (b"", "not a tokenizer file"),
        (b"\xff", "not a tokenizer file"),
        (b'{"model": {}}', "not a tokenizer file"),
        (b'{"version": "1.0", "model": {"type": "WordPiece"', "not a tokenizer file"),
        (
            json.dumps(
                {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
            ).encode(),
            "without the control tokens",
        ),
    ],
    ids=["missing", "empty", "not UTF-8", "foreign JSON", "truncated", "foreign vocabulary"],
)
def test_a_file_that_is_no_tokenizer_of_ours_is_refused_by_name(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=f"tokenizer.json: .*{message}"):
        TextTokenizer.load(path)


def test_training_gives_the_same_files_in_another_process(tmp_path: Path) -> None:
    """Hash seeds differ between processes, which is what made the library's trainers vary."""
    code = (
        "import sys; from pathlib import Path; from coreflow.models.data import grammar, tokenizers\n"
        "corpus = grammar.sentences(0, 4000)\n"
        "tokenizers.train_wordpiece(corpus, 200).save(Path(sys.argv[1], 'wordpiece.json'))\n"
        "tokenizers.train_unigram(corpus, 200).save(Path(sys.argv[1], 'unigram.json'))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    for train, name in ((train_wordpiece, "wordpiece.json"), (train_unigram, "unigram.json")):
        train(CORPUS, 200).save(tmp_path / "here.json")
        assert (tmp_path / "here.json").read_bytes() == (tmp_path / name).read_bytes()


@TRAINERS
def test_the_order_of_the_corpus_does_not_matter(train: Train, tmp_path: Path) -> None:
    train(CORPUS, 200).save(tmp_path / "forwards.json")
    train(CORPUS[::-1], 200).save(tmp_path / "backwards.json")
    assert (tmp_path / "forwards.json").read_bytes() == (tmp_path / "backwards.json").read_bytes()


@TRAINERS
@given(corpus=st.lists(st.text(max_size=30), max_size=5), size=st.integers(5, 60))
def test_any_corpus_trains_within_the_size_asked_for(train: Train, corpus: list[str], size: int) -> None:
    tokenizer = train(["fox", *corpus], size)
    assert tokenizer.vocab_size <= size
    assert len(tokenizer.encode("fox", 8).ids) == 8


@pytest.mark.parametrize(("train", "size", "framing"), [(train_wordpiece, 43, 2), (train_unigram, 25, 1)], ids=["wordpiece", "unigram"])
def test_frequent_words_stay_whole_and_rare_ones_share_parts(train: Train, size: int, framing: int) -> None:
    """Beside control tokens and letters, 4 + 2 * 18 in WordPiece and 3 + 19 in Unigram, the size leaves room for three."""
    corpus = ["walk", "talk"] * 50 + [f"{stem}ing" for stem in ("garden", "wander", "fish", "sail", "jump")]
    tokenizer = train(corpus, size)
    pieces = {word: int(tokenizer.encode(word, 32).mask.sum()) - framing for word in ("walk", "talk", "jumping")}
    assert (pieces["walk"], pieces["talk"]) == (1, 1)
    assert pieces["jumping"] <= len("▁jump") + 1


@TRAINERS
@pytest.mark.parametrize("corpus", [[], ["", "  "]], ids=["no text", "white space"])
def test_a_corpus_without_a_word_is_refused(train: Train, corpus: list[str]) -> None:
    with pytest.raises(InputError, match="no word to learn"):
        train(corpus, 100)


@TRAINERS
def test_a_vocabulary_without_room_is_refused(train: Train) -> None:
    with pytest.raises(ConfigError, match="no room"):
        train(CORPUS, 3)


def test_importing_the_module_does_not_load_the_library() -> None:
    code = "import sys, coreflow.models.data.tokenizers; assert not {'tokenizers', 'torch'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
