import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import DistilBertConfig, DistilBertModel, PreTrainedTokenizerFast

from coreflow.models.data import grammar
from coreflow.models.data.teacher import HashedNgramTeacher, HuggingFaceTeacher, load_teacher
from coreflow.models.data.tokenizers import train_wordpiece
from coreflow.models.errors import BundleError, InputError

Spoil = Callable[[Path], None]

HASHED = HashedNgramTeacher()
FOX = "the old fox slept near the barn"


@given(st.lists(st.text(min_size=1).map(lambda text: f"x{text}"), min_size=1, max_size=6))
def test_hashed_vectors_are_unit_vectors_and_do_not_depend_on_their_neighbours(texts: list[str]) -> None:
    vectors = HASHED.embed(texts)
    assert (vectors.shape, vectors.dtype) == ((len(texts), 768), np.dtype(np.float32))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(vectors[-1], HASHED.embed(texts[-1:])[0])


@pytest.mark.parametrize(
    ("nearer", "farther"),
    [
        ("the old fox slept near the mill", "the old queen sang near the mill"),
        ("the old foxes slept near the barns", "the old tigers slept near the caves"),
        ("near the barn the old fox slept", "near the cave the old cat slept"),
        (FOX, "near the barn the old fox slept"),
        ("The old fox slept near the barn.", "the old fox slept near the cave"),
    ],
    ids=["more shared words", "inflections", "word order", "word order counts", "case and full stop"],
)
def test_sentences_that_share_more_words_are_nearer(nearer: str, farther: str) -> None:
    fox, near, far = HASHED.embed([FOX, nearer, farther])
    assert fox @ near > fox @ far + 0.01


def test_one_changed_word_stays_nearer_than_any_unrelated_sentence() -> None:
    others = HASHED.embed([sentence for sentence in grammar.sentences(0, 500) if not set(sentence.split()) & (set(FOX.split()) - {"the"})])
    fox, changed = HASHED.embed([FOX, "the old fox slept near the mill"])
    assert fox @ changed > (others @ fox).max() + 0.1


def test_hashed_vectors_are_equal_in_another_process() -> None:
    code = f"from coreflow.models.data.teacher import HashedNgramTeacher; print(HashedNgramTeacher().embed([{FOX!r}]).tobytes().hex())"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == HASHED.embed([FOX]).tobytes().hex()


def test_hashing_is_signed_so_that_collisions_cancel_on_average() -> None:
    vectors = HASHED.embed(sorted(grammar.vocabulary()))
    assert abs(np.sign(vectors).sum()) < 0.1 * np.abs(np.sign(vectors)).sum()


def test_no_text_gives_no_vector() -> None:
    assert HASHED.embed([]).shape == (0, 768)


@pytest.mark.parametrize("text", ["", " \n"], ids=["empty", "white space"])
def test_a_text_without_a_word_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no word in the text"):
        HASHED.embed([FOX, text])


@pytest.fixture(scope="module")
def encoder_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DistilBERT of width 32 with its tokenizer, saved as Hugging Face saves one."""
    directory = tmp_path_factory.mktemp("encoder")
    wordpiece = train_wordpiece(grammar.sentences(0, 500), 512)
    wordpiece.save(directory / "wordpiece.json")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "wordpiece.json"), pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=wordpiece.vocab_size, dim=32, hidden_dim=64, n_layers=2, n_heads=4, max_position_embeddings=16)
    DistilBertModel(config).save_pretrained(directory)
    return directory


def test_a_local_encoder_gives_the_masked_mean_of_its_last_hidden_state(encoder_directory: Path) -> None:
    teacher = load_teacher(encoder_directory)
    texts = [FOX, "the fox", "some young hunter cheerfully marched"]
    vectors = teacher.embed(texts)
    assert (teacher.size, vectors.shape, vectors.dtype) == (32, (3, 32), np.dtype(np.float32))
    model = DistilBertModel.from_pretrained(encoder_directory).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(encoder_directory)
    for text, vector in zip(texts, vectors, strict=True):
        with torch.no_grad():
            mean = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_a_local_encoder_cuts_long_texts_and_takes_any_number_of_them(encoder_directory: Path) -> None:
    teacher = HuggingFaceTeacher(encoder_directory)
    vectors = teacher.embed(["fox " * 100, *grammar.sentences(0, 4)], batch=2)
    np.testing.assert_allclose(vectors[1:], teacher.embed(grammar.sentences(0, 4)), atol=1e-5)
    assert teacher.embed([]).shape == (0, 32)
    with pytest.raises(InputError, match="no word"):
        teacher.embed([" "])


def remove(pattern: str) -> Spoil:
    def spoil(directory: Path) -> None:
        for path in directory.glob(pattern):
            path.unlink()

    return spoil


def pickle_weights(directory: Path) -> None:
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def lose_a_weight(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    weights.pop("transformer.layer.1.ffn.lin1.weight")
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def cut_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def enlarge_tokenizer(directory: Path) -> None:
    train_wordpiece(grammar.sentences(0, 500), 100).save(directory / "tokenizer.json")
    DistilBertModel(DistilBertConfig(vocab_size=50, dim=32, hidden_dim=64, n_layers=1, n_heads=4)).save_pretrained(directory)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("*"), r"no config\.json"),
        (remove("config.json"), r"no config\.json"),
        (remove("*.safetensors"), "needs safetensors weights"),
        (pickle_weights, "needs safetensors weights"),
        (cut_weights, "needs safetensors weights"),
        (lose_a_weight, r"weights without transformer\.layer\.1\.ffn\.lin1\.weight"),
        (remove("*token*"), "needs the tokenizer"),
        (enlarge_tokenizer, "a tokenizer of 100 pieces, weights for 50"),
    ],
    ids=["empty", "no config", "no weights", "pickled weights", "cut weights", "a weight lost", "no tokenizer", "foreign tokenizer"],
)
def test_a_directory_that_is_no_teacher_is_refused(encoder_directory: Path, tmp_path: Path, spoil: Spoil, message: str) -> None:
    directory = tmp_path / "teacher"
    shutil.copytree(encoder_directory, directory)
    spoil(directory)
    with pytest.raises(BundleError, match=f"teacher: .*{message}"):
        load_teacher(directory)


def test_loading_an_encoder_prints_nothing_and_leaves_the_library_as_it_was(
    encoder_directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_teacher(encoder_directory)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_without_a_directory_the_teacher_is_the_hashed_one() -> None:
    assert isinstance(load_teacher(None), HashedNgramTeacher)


def test_importing_the_module_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, coreflow.models.data.teacher; assert not {'transformers', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
