"""Dimensions of a T5 v1.0 decoder. Standard library only."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from coreflow.models.errors import ConfigError

_EXTENTS = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers")


@dataclass(frozen=True, slots=True, kw_only=True)
class T5Config:
    """All that decides the parameters of a decoder; the names are those of Hugging Face's ``config.json``.

    >>> config = read_config(Path("t5-small"))
    >>> config.inner == config.num_heads * config.d_kv
    True

    The inner width of attention is ``num_heads * d_kv`` and need not be ``d_model``. Decoding starts with ``pad_id``.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    num_layers: int
    layer_norm_epsilon: float
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    tie_word_embeddings: bool = True  # the head is the embedding, its input scaled by d_model ** -0.5; else a matrix of its own, unscaled
    dropout: float = 0.1  # in training only
    pad_id: int = 0
    eos_id: int = 1

    def __post_init__(self) -> None:
        whole = (*_EXTENTS, "relative_attention_num_buckets", "relative_attention_max_distance", "pad_id", "eos_id")
        problems = [f"{name}={getattr(self, name)!r} is not a whole number" for name in whole if type(getattr(self, name)) is not int]
        if type(self.tie_word_embeddings) is not bool:
            problems.append(f"tie_word_embeddings={self.tie_word_embeddings!r} is neither true nor false")
        for name in ("layer_norm_epsilon", "dropout"):
            if type(getattr(self, name)) not in (int, float):
                problems.append(f"{name}={getattr(self, name)!r} is not a number")
        if not problems:
            problems = self._out_of_range()
        if problems:
            raise ConfigError(f"T5 decoder: {'; '.join(problems)}")

    def _out_of_range(self) -> list[str]:
        problems = [f"{name}={getattr(self, name)} is below 1" for name in _EXTENTS if getattr(self, name) < 1]
        problems += [
            f"{name}={getattr(self, name)} is outside the vocabulary of {self.vocab_size}"
            for name in ("pad_id", "eos_id")
            if not 0 <= getattr(self, name) < max(self.vocab_size, 1)
        ]
        if self.relative_attention_num_buckets < 2:
            problems.append(f"relative_attention_num_buckets={self.relative_attention_num_buckets}; at least 2")
        elif self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            problems.append(
                f"relative_attention_max_distance={self.relative_attention_max_distance} must exceed the "
                f"{self.relative_attention_num_buckets // 2} distances that have buckets of their own"
            )
        if not 0 < self.layer_norm_epsilon < math.inf:
            problems.append(f"layer_norm_epsilon={self.layer_norm_epsilon} is not above 0")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout}; 0 <= dropout < 1")
        return problems

    @property
    def inner(self) -> int:
        """Width of all attention heads together."""
        return self.num_heads * self.d_kv

    def to_json(self) -> dict[str, Any]:
        """Plain data for a manifest or a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "T5Config":
        """Inverse of ``to_json``; unknown and missing keys are refused."""
        unknown = set(plain) - {field.name for field in fields(cls)}
        if unknown:
            raise ConfigError(f"T5 decoder config has unknown keys {sorted(unknown)}")
        missing = {*_EXTENTS, "layer_norm_epsilon"} - set(plain)
        if missing:
            raise ConfigError(f"T5 decoder config lacks {sorted(missing)}")
        return cls(**plain)


T5_SMALL = T5Config(vocab_size=32128, d_model=512, d_kv=64, d_ff=2048, num_heads=8, num_layers=6, layer_norm_epsilon=1e-6)
