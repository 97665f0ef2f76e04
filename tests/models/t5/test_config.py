"""A decoder's dimensions are checked once, on construction."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from coreflow.models.errors import ConfigError
from coreflow.models.t5.config import T5_SMALL, T5Config


def test_t5_small_has_the_published_dimensions() -> None:
    assert (T5_SMALL.d_model, T5_SMALL.d_kv, T5_SMALL.d_ff) == (512, 64, 2048)
    assert (T5_SMALL.num_heads, T5_SMALL.num_layers, T5_SMALL.vocab_size) == (8, 6, 32128)
    assert T5_SMALL.inner == 512
    assert T5_SMALL.layer_norm_epsilon == 1e-6


@pytest.mark.parametrize(
    "config",
    [T5_SMALL, replace(T5_SMALL, vocab_size=77, dropout=0.25), replace(T5_SMALL, tie_word_embeddings=False)],
    ids=["small", "dropout", "untied"],
)
def test_json_round_trip(config: T5Config) -> None:
    assert T5Config.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"num_heads": 2.0}, "num_heads=2.0"),
        ({"d_ff": True}, "d_ff=True"),
        ({"d_kv": None}, "d_kv=None"),
        ({"eos_id": 32128}, "eos_id=32128"),
        ({"pad_id": -1}, "pad_id=-1"),
        ({"relative_attention_num_buckets": 1}, "relative_attention_num_buckets=1"),
        ({"relative_attention_max_distance": 16}, "relative_attention_max_distance=16"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon=0.0"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon=nan"),
        ({"layer_norm_epsilon": "1e-6"}, "layer_norm_epsilon='1e-6'"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_value_that_cannot_be_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        replace(T5_SMALL, **change)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"d_model=0.*d_ff=-3.*dropout=2"):
        replace(T5_SMALL, d_model=0, d_ff=-3, dropout=2)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda plain: plain | {"gated": True}, "unknown keys.*gated"),
        (lambda plain: {"vocab_size": 9}, "lacks.*d_model.*layer_norm_epsilon"),
    ],
    ids=["unknown", "missing"],
)
def test_foreign_json_is_refused(edit: Callable[[dict[str, Any]], dict[str, Any]], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        T5Config.from_json(edit(T5_SMALL.to_json()))
