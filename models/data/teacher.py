"""Teachers: the meaning of a sentence as one vector of E numbers.

The default needs no weights. It hashes words, word pairs and letter triples into signed buckets, so sentences that share
words or spellings lie close together; it knows nothing of synonyms. A local Hugging Face encoder does, and takes its place.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coreflow.models.arrays import Floats
from coreflow.models.errors import BundleError, InputError

# Weights of one word, of one pair of neighbours, and of all triples of a word together. Words lead: sentences with the same
# words in another order stay near. Triples bring inflections of one word together.
_WORD, _PAIR, _TRIPLE = 1.0, 0.5, 0.5


class Teacher(Protocol):
    """Turns texts into vectors of ``size`` numbers.

    >>> teacher: Teacher = HashedNgramTeacher()
    >>> teacher.embed(["the old mill", "the new mill"]).shape
    (2, 768)
    """

    @property
    def size(self) -> int:
        """E, the length of every vector."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (B, E), one per text; ``InputError`` for a text without a word."""


class HashedNgramTeacher:
    """Signed feature hashing of words, word pairs and letter triples; the same on every machine.

    >>> text, near, far = HashedNgramTeacher().embed(["the old mill", "the old mills", "a red boat"])
    >>> bool(text @ near > text @ far)
    True

    Source: Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning".
    """

    size = 768  # DistilBERT's width

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (B, 768), one per text; letter case and punctuation at the ends of words do not count."""
        vectors = np.zeros((len(texts), self.size))
        for vector, words in zip(vectors, map(_split_words, texts), strict=True):
            for word in words:
                buckets, weights = _hash_word(word)
                np.add.at(vector, buckets, weights)
            for pair in pairwise(words):
                bucket, sign = _hash_feature("pair " + " ".join(pair))
                vector[bucket] += sign * _PAIR
        # No vector is zero: its words would have to cancel in every bucket. The floor keeps that from dividing by zero.
        return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)


class HuggingFaceTeacher:
    """An encoder read from a local Hugging Face directory; the masked mean of its last hidden state, at unit length.

    >>> HuggingFaceTeacher(Path("distilbert-base-uncased")).embed(["the old mill"])
    """

    def __init__(self, directory: Path) -> None:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer

        if not (directory / "config.json").is_file():
            raise BundleError(f"{directory}: no config.json; a teacher is a local directory in Hugging Face format")
        try:
            # Safetensors alone and no code from the directory: reading it may not run anything.
            with _quiet_transformers():
                self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
                self._model, loading = AutoModel.from_pretrained(
                    directory,
                    local_files_only=True,
                    use_safetensors=True,
                    trust_remote_code=False,
                    dtype=torch.float32,  # half precision is slow on a CPU
                    output_loading_info=True,
                )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise BundleError(f"{directory}: not a usable teacher ({reason}); it needs safetensors weights and a tokenizer") from error
        self._model.eval()
        self.size = int(self._model.config.hidden_size)
        # transformers makes up what is not there, weights and tokenizers alike. A pooler may be: the mean does not use it.
        if absent := sorted(key for key in loading["missing_keys"] if not key.startswith("pooler.")):
            raise BundleError(
                f"{directory}: not a usable teacher (weights without {', '.join(absent[:3])}); it needs every weight of its config"
            )
        if not len(self._tokenizer.all_special_ids) < len(self._tokenizer) <= self._model.config.vocab_size:
            sizes = f"a tokenizer of {len(self._tokenizer)} pieces, weights for {self._model.config.vocab_size}"
            raise BundleError(f"{directory}: not a usable teacher ({sizes}); it needs the tokenizer that its weights were trained with")

    def embed(self, texts: Sequence[str], batch: int = 32) -> NDArray[np.float32]:
        """Unit vectors (B, E), one per text, ``batch`` texts at a time; texts are cut to the encoder's positions."""
        import torch

        for text in texts:
            _split_words(text)
        longest = min(getattr(self._model.config, "max_position_embeddings", 512), self._tokenizer.model_max_length)
        vectors = np.zeros((len(texts), self.size), dtype=np.float32)
        for start in range(0, len(texts), batch):
            chunk = list(texts[start : start + batch])
            encoded = self._tokenizer(chunk, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            with torch.inference_mode():
                hidden = self._model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).last_hidden_state
                mask = encoded["attention_mask"].unsqueeze(-1).to(hidden.dtype)
                mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
                vectors[start : start + batch] = torch.nn.functional.normalize(mean.float(), dim=-1).numpy()
        return vectors


def load_teacher(path: Path | None) -> Teacher:
    """The encoder in the directory ``path``, or the hashed one for None."""
    return HashedNgramTeacher() if path is None else HuggingFaceTeacher(path)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar and no report of unused weights: problems that matter are checked and raised."""
    from transformers.utils import logging as library

    verbosity, shows_bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if shows_bars:
            library.enable_progress_bar()


def _split_words(text: str) -> list[str]:
    words = [word.strip(".,;:!?\"'()[]") or word for word in text.lower().split()]
    if not words:
        raise InputError(f"no word in the text {text[:40]!r}; a teacher needs at least one")
    return words


@functools.lru_cache(maxsize=1 << 16)
def _hash_word(word: str) -> tuple[NDArray[np.intp], Floats]:
    """Buckets and signed weights of a word and of the letter triples in it, its ends marked."""
    marked = f"<{word}>"
    triples = [marked[at : at + 3] for at in range(len(marked) - 2)]
    hashed = [_hash_feature(f"word {word}"), *(_hash_feature(f"triple {triple}") for triple in triples)]
    # Triples fall into different buckets, so their length adds in squares: a long word weighs what a short one does.
    weights = [_WORD] + [_TRIPLE / len(triples) ** 0.5] * len(triples)
    buckets = np.array([bucket for bucket, _ in hashed], dtype=np.intp)
    return buckets, np.array([sign for _, sign in hashed]) * weights


@functools.lru_cache(maxsize=1 << 16)
def _hash_feature(feature: str) -> tuple[int, float]:
    """Bucket and sign of a feature. Not ``hash()``, which changes with every process."""
    number = int.from_bytes(hashlib.blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
    return (number >> 1) % HashedNgramTeacher.size, 1.0 if number & 1 else -1.0
