"""WordPiece and Unigram tokenizers, learned from a corpus and the same for the same corpus.

Both share one way of choosing pieces, ``_learn_pieces``. The library's own trainers are not used. With tokenizers 0.23.3
three runs over one corpus gave three vocabularies or scores, and of 320 words in 20 000 sentences the Unigram trainer kept
none whole. Normalisers, pre-tokenizers, the Viterbi search, decoders and the file format are the library's.
"""

import heapq
import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from coreflow.models.errors import BundleError, ConfigError, InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

WORDPIECE_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")  # ids 0 to 3
UNIGRAM_SPECIALS = ("<pad>", "</s>", "<unk>")  # ids 0 to 2, as T5 has them

_WORD_START = "▁"
_MAX_PIECE = 16  # characters; SentencePiece's limit
_CANDIDATES = 10  # parts of words looked at for each one that there is room for


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text as L tokens: ``ids`` (L,) int32 and ``mask`` (L,) float16, 1 on a token and 0 on padding.

    >>> encoded = tokenizer.encode("the old mill", length=8)
    >>> encoded.ids[encoded.mask > 0], encoded.dropped, encoded.unknown

    ``dropped`` tokens did not fit. ``unknown`` holds the parts of the whole text that the vocabulary lacks, each once.
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.float16]
    dropped: int
    unknown: tuple[str, ...]


class TextTokenizer:
    """Text to ids of a fixed length and back; padding, end and unknown tokens are those of its vocabulary (BERT's or T5's).

    >>> tokenizer = TextTokenizer.load(Path("artifacts/runs/demo/wordpiece.json"))
    >>> tokenizer.decode(tokenizer.encode("the old mill", length=8).ids)
    'the old mill'
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        known: dict[str, int] = tokenizer.get_vocab()
        specials = next((kind for kind in (WORDPIECE_SPECIALS, UNIGRAM_SPECIALS) if known.keys() >= set(kind)), None)
        if specials is None:
            kinds = " or ".join(", ".join(kind) for kind in (WORDPIECE_SPECIALS, UNIGRAM_SPECIALS))
            raise BundleError(f"a tokenizer of {len(known)} pieces without the control tokens of either kind; one has {kinds}")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        pad, end, unknown = ("[PAD]", "[SEP]", "[UNK]") if specials == WORDPIECE_SPECIALS else ("<pad>", "</s>", "<unk>")
        self._tokenizer = tokenizer
        self._control = frozenset(known[token] for token in specials)
        self.pad_id = known[pad]
        self.eos_id = known[end]
        self.unk_id = known[unknown]

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str, length: int) -> Encoded:
        """``text`` in exactly ``length`` tokens: padded, or cut so that the closing token stays.

        Raises ``InputError`` for text without a word, ``ConfigError`` for a length that leaves no room for one.
        """
        _require_unicode(text)
        encoding = self._tokenizer.encode(text)
        ids, framing = encoding.ids, encoding.special_tokens_mask
        if all(framing):
            raise InputError(f"no word in the text {text[:40]!r}; give at least one character that is not white space")
        if length <= sum(framing):
            raise ConfigError(f"length {length}; {sum(framing)} tokens frame every text, so choose {sum(framing) + 1} or more")
        unknown = []
        for at, frames in enumerate(framing):
            # Any control token: "</s>" typed into a text is not the end of it, so it is unknown as well.
            if not frames and ids[at] in self._control:
                ids[at] = self.unk_id
                unknown.append(text[slice(*encoding.offsets[at])].strip())
        kept = ids if len(ids) <= length else ids[: length - 1] + ids[-1:]
        return Encoded(
            ids=np.array(kept + [self.pad_id] * (length - len(kept)), dtype=np.int32),
            mask=np.array([1] * len(kept) + [0] * (length - len(kept)), dtype=np.float16),
            dropped=len(ids) - len(kept),
            unknown=tuple(dict.fromkeys(unknown)),
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; control tokens are left out. Ids are 0 to ``vocab_size - 1``."""
        plain = [int(token) for token in ids]
        if foreign := sorted({token for token in plain if not 0 <= token < self.vocab_size}):
            raise InputError(f"token ids {foreign[:8]} are outside the vocabulary; ids are 0 to {self.vocab_size - 1}")
        return str(self._tokenizer.decode(plain, skip_special_tokens=True))

    def save(self, path: Path) -> None:
        """Write the library's JSON to ``path``; the same tokenizer always gives the same bytes."""
        path.write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what ``save`` wrote, or a BERT or T5 ``tokenizer.json``; raises ``BundleError`` when that cannot be."""
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise BundleError(f"{path}: cannot read the tokenizer ({error.strerror})") from error
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path}: not a tokenizer file ({error}); it holds the JSON of the tokenizers library") from error
        try:
            return cls(tokenizer)
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from error


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """A lower-casing BERT tokenizer of at most ``vocab_size`` pieces; a text becomes ``[CLS] … [SEP]``."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    words = Counter({_WORD_START + word: count for word, count in _count_words(tokenizer, texts).items()})
    # A letter reads differently at the start of a word, so both forms are kept and any new word can be spelled.
    letters: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word[1:]:
            letters[letter] += count
            letters[_WORD_START + letter] += count
    pieces = [piece for piece, _ in _learn_pieces(words, letters, vocab_size - len(WORDPIECE_SPECIALS)) if piece != _WORD_START]
    names = [piece.removeprefix(_WORD_START) if piece.startswith(_WORD_START) else f"##{piece}" for piece in pieces]
    # Two pieces can get one name when the corpus itself holds the sign that marks a word's start; the first keeps it.
    vocabulary = {name: index for index, name in enumerate(dict.fromkeys((*WORDPIECE_SPECIALS, *names)))}
    tokenizer.model = models.WordPiece(vocabulary, unk_token="[UNK]")
    tokenizer.add_special_tokens(list(WORDPIECE_SPECIALS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    return TextTokenizer(tokenizer)


def train_unigram(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """A T5 tokenizer of at most ``vocab_size`` pieces; a text becomes ``… </s>``.

    A text of known characters decodes to itself, but for runs of white space and forms that NFKC folds.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_WORD_START, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=_WORD_START, prepend_scheme="always")
    words = _count_words(tokenizer, texts)
    letters: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word:
            letters[letter] += count
    pieces = _learn_pieces(words, letters, vocab_size - len(UNIGRAM_SPECIALS))
    model = [(token, 0.0) for token in UNIGRAM_SPECIALS] + [(piece, score) for piece, score in pieces if piece not in UNIGRAM_SPECIALS]
    tokenizer.model = models.Unigram(model, unk_id=UNIGRAM_SPECIALS.index("<unk>"))
    tokenizer.add_special_tokens(list(UNIGRAM_SPECIALS))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", UNIGRAM_SPECIALS.index("</s>"))])
    return TextTokenizer(tokenizer)


def _count_words(tokenizer: "Tokenizer", texts: Iterable[str]) -> Counter[str]:
    """Count of every pre-token of the normalised ``texts``."""
    words: Counter[str] = Counter()
    for text in texts:
        _require_unicode(text)
        normal = tokenizer.normalizer.normalize_str(text)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    if not words:
        raise InputError("no word to learn a vocabulary from; give at least one text that is not white space")
    return words


def _learn_pieces(words: Counter[str], letters: Counter[str], size: int) -> list[tuple[str, float]]:
    """At most ``size`` pieces with their log-probabilities, likeliest first: ``letters``, whole words, parts of words.

    Unigram by hard expectation maximisation: split every word its likeliest way, keep the pieces most used, weigh them by use, once more
    with fewer. A word beats its parts as long as it is a candidate, and only as many are as there is room for: frequent words end whole,
    the rest decide which parts stay. Unused pieces are dropped, letters excepted.
    """
    from tokenizers import models

    if size < 1:
        raise ConfigError("the vocabulary has no room beside its control tokens; choose a larger size")
    kept_letters = dict(_largest(letters, size))
    if rare := len(letters) - len(kept_letters):
        logger.info("%d of %d letters left out: the vocabulary has room for %d", rare, len(letters), size)
    parts = _count_parts(words)
    whole = Counter({word: count for word, count in words.items() if word not in letters})
    # Words compete by use, parts by the characters they save; apart, for long parts would crowd out short words.
    saved = Counter({part: count * (len(part) - 1) for part, count in parts.items() if count > 1 and part not in letters})
    room = size - len(kept_letters)
    candidates = list(dict.fromkeys(piece for piece, _ in _largest(whole, room) + _largest(saved, _CANDIDATES * room)))
    uses = Counter({piece: words[piece] + parts[piece] for piece in candidates})
    for keep in (2 * room, room):
        weights = {**{piece: uses[piece] for piece in candidates}, **kept_letters}
        model = models.Unigram([(" ", 0.0), *_log_probabilities(weights)], unk_id=0)  # white space: no word holds it
        uses = Counter()
        for word, count in words.items():
            for token in model.tokenize(word):
                uses[token.value] += count
        used = Counter({piece: uses[piece] for piece in candidates if uses[piece]})
        candidates = [piece for piece, _ in _largest(used, keep)]
    return _log_probabilities({**{piece: used[piece] for piece in candidates}, **{letter: uses[letter] or 1 for letter in kept_letters}})


def _count_parts(words: Counter[str]) -> Counter[str]:
    """Count of every part of the ``words`` of two characters or more that is shorter than its word."""
    parts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 2, min(start + _MAX_PIECE, len(word)) + 1):
                if end - start < len(word):
                    parts[word[start:end]] += count
    return parts


def _largest(counts: Counter[str], limit: int) -> list[tuple[str, int]]:
    """The ``limit`` largest counts, largest first; ties in the order of the text, so that the result never varies."""
    return heapq.nsmallest(limit, counts.items(), key=lambda item: (-item[1], item[0]))


def _log_probabilities(weights: dict[str, int]) -> list[tuple[str, float]]:
    """Pieces by falling weight, with the logarithm of their share; six decimals, for the last ones differ between libraries."""
    total = sum(weights.values())
    return [(piece, round(math.log(weight / total), 6)) for piece, weight in _largest(Counter(weights), len(weights))]


def _require_unicode(text: str) -> None:
    """Refuse a lone surrogate, which undecodable bytes on a command line turn into."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text holds {text[error.start]!r} at character {error.start + 1}, which is no Unicode; give UTF-8 text"
        ) from error
