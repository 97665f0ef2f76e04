"""Sentence pairs of a corpus or the grammar, and their tokens as padded tensors."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from coreflow.models.data import grammar
from coreflow.models.data.corpus import Pair, read_corpus
from coreflow.models.data.tokenizers import TextTokenizer
from coreflow.models.energy.training.options import TrainingOptions
from coreflow.models.errors import InputError
from coreflow.models.training.losses import IGNORED

HELD_OUT_SHARE = 0.05  # of a user's corpus
HELD_OUT_SENTENCES = 500  # of the grammar


class PairTensors:
    """Pairs as padded arrays: encoder ids and mask of the source, decoder tokens of the target.

    >>> ids, mask, shifted, targets = data.batch(torch.tensor([0, 3, 5]), device)
    """

    def __init__(
        self, pairs: Sequence[Pair], wordpiece: TextTokenizer, unigram: TextTokenizer, text_length: int, decode_length: int
    ) -> None:
        self.sources = [pair.source for pair in pairs]
        sources = [wordpiece.encode(pair.source, text_length) for pair in pairs]
        self.ids = torch.from_numpy(np.stack([source.ids for source in sources]))
        self.mask = torch.from_numpy(np.stack([source.mask for source in sources])).float()
        targets = [unigram.encode(pair.target, decode_length) for pair in pairs]
        tokens = torch.from_numpy(np.stack([target.ids for target in targets])).long()
        is_token = torch.from_numpy(np.stack([target.mask for target in targets])) > 0
        self.targets = tokens.masked_fill(~is_token, IGNORED)
        # What the decoder has read before a target: T5 starts from the padding token.
        self.shifted = torch.cat([torch.full_like(tokens[:, :1], unigram.pad_id), tokens[:, :-1]], 1)

    def __len__(self) -> int:
        return len(self.sources)

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """ids, mask, shifted, targets of these rows, cut to the longest of them: padding costs time and changes nothing."""
        length = int(self.mask[rows].sum(1).max())
        written = int((self.targets[rows] != IGNORED).sum(1).max())
        parts = self.ids[rows, :length], self.mask[rows, :length], self.shifted[rows, :written], self.targets[rows, :written]
        return parts[0].to(device), parts[1].to(device), parts[2].to(device), parts[3].to(device)


def load_pairs(options: TrainingOptions) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs, from the corpus or the grammar."""
    if options.corpus is None:
        train, held_out = grammar.split(options.seed, options.sentences, HELD_OUT_SENTENCES)
        return [Pair(sentence, sentence) for sentence in train], [Pair(sentence, sentence) for sentence in held_out]
    pairs = read_corpus(options.corpus)
    if len(pairs) < 2:
        raise InputError(f"{options.corpus} has one usable line; at least 2 are needed, one of them to hold out")
    order = np.random.default_rng(options.seed).permutation(len(pairs))
    count = max(1, min(HELD_OUT_SENTENCES, round(len(pairs) * HELD_OUT_SHARE)))
    return [pairs[row] for row in order[count:]], [pairs[row] for row in order[:count]]
