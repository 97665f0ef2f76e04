"""Decoding chooses what its definition says, over any step function, and correction never loses what it had."""

import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import T5Config as HuggingFaceConfig
from transformers import T5ForConditionalGeneration, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.modeling_outputs import BaseModelOutput

from coreflow.models.arrays import Array
from coreflow.models.energy.decoding import (
    Decoded,
    DecodingOptions,
    RefinedResult,
    StepFunction,
    SurfaceCache,
    decode,
    refine,
    sampling_probabilities,
)
from coreflow.models.errors import ConfigError, InputError
from coreflow.models.t5.decoder import T5Decoder
from coreflow.models.t5.load import load_decoder

EOS = 1


def history_model(vocabulary: int, seed: int, spread: float = 2.0) -> StepFunction[Any]:
    """A step whose logits depend on all tokens so far. Its state is the tuple of them, so beams that shared one wrongly would
    be found out."""

    def step(token: int, position: int, state: Any) -> tuple[Array, Any]:
        assert len(state) == position, "a state belongs to one position"
        state = (*state, token)
        return np.random.default_rng(zlib.crc32(repr((seed, state)).encode())).normal(scale=spread, size=vocabulary), state

    return step


def constant_model(logits: Sequence[float] | Array) -> StepFunction[Any]:
    """The same logits at every position, no end token unless they give it a chance."""
    return lambda token, position, state: (np.asarray(logits), state)


def log_softmax(logits: Sequence[float] | Array) -> Array:
    return torch.log_softmax(torch.as_tensor(logits, dtype=torch.float64), -1).numpy()


def hypotheses(step: StepFunction[Any], vocabulary: int, max_tokens: int) -> list[tuple[tuple[int, ...], float]]:
    """Every possible (tokens, end included; log probability), by enumeration."""

    def grow(tokens: tuple[int, ...], total: float, state: Any) -> Iterator[tuple[tuple[int, ...], float]]:
        logits, state = step(tokens[-1] if tokens else 0, len(tokens), state)
        for token, gain in enumerate(log_softmax(logits)):
            longer = (*tokens, token)
            if token == EOS or len(longer) == max_tokens:
                yield longer, total + gain
            else:
                yield from grow(longer, total + gain, state)

    return list(grow((), 0.0, ()))


def with_end(decoded: Decoded) -> tuple[int, ...]:
    return (*decoded.tokens, EOS) if decoded.has_end else decoded.tokens


# --- greedy -------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), vocabulary=st.integers(2, 12), max_tokens=st.integers(1, 12))
def test_greedy_takes_the_likeliest_token_at_every_position(seed: int, vocabulary: int, max_tokens: int) -> None:
    step = history_model(vocabulary, seed)
    decoded = decode(step, (), DecodingOptions(max_tokens=max_tokens))
    state: tuple[int, ...] = ()
    token, total = 0, 0.0
    for position, chosen in enumerate(with_end(decoded)):
        logits, state = step(token, position, state)
        assert chosen == max(range(vocabulary), key=logits.__getitem__)
        total += log_softmax(logits)[chosen]
        token = chosen
    assert decoded.log_probability == pytest.approx(total, abs=1e-12)
    assert EOS not in decoded.tokens
    assert decoded.has_end or len(decoded.tokens) == max_tokens


def test_greedy_takes_the_lower_id_among_equals() -> None:
    assert decode(constant_model([0.0, -5.0, 3.0, 3.0]), None, DecodingOptions(max_tokens=2)).tokens == (2, 2)


def test_other_start_and_end_tokens_are_honoured() -> None:
    seen: list[tuple[int, int]] = []

    def step(token: int, position: int, state: Any) -> tuple[Array, Any]:
        seen.append((token, position))
        return np.eye(5)[token - 1], state

    decoded = decode(step, None, DecodingOptions(max_tokens=9), start_id=4, eos_id=2)
    assert seen == [(4, 0), (3, 1)]
    assert (decoded.tokens, decoded.has_end) == ((3,), True)


# --- beams --------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    vocabulary=st.integers(2, 4),
    max_tokens=st.integers(1, 4),
    penalty=st.sampled_from([0.0, 1.0, 0.5, 3.0, -1.0]),
)
def test_a_beam_for_every_sequence_is_an_exhaustive_search(seed: int, vocabulary: int, max_tokens: int, penalty: float) -> None:
    step = history_model(vocabulary, seed)
    options = DecodingOptions(max_tokens=max_tokens, method="beam", beams=vocabulary**max_tokens, length_penalty=penalty)
    decoded = decode(step, (), options)
    tokens, total = max(hypotheses(step, vocabulary, max_tokens), key=lambda pair: pair[1] / len(pair[0]) ** penalty)
    assert with_end(decoded) == tokens
    assert decoded.log_probability == pytest.approx(total, abs=1e-12)


def test_length_penalty_decides_between_short_and_long() -> None:
    """The end is likelier at once, the longer text likelier a token."""

    def step(token: int, position: int, state: Any) -> tuple[Array, Any]:
        return np.log([1e-9, 0.6, 0.4] if position == 0 else [1e-9, 1e-9, 1.0]), state

    def tokens(penalty: float) -> tuple[int, ...]:
        return decode(step, None, DecodingOptions(max_tokens=4, method="beam", beams=2, length_penalty=penalty)).tokens

    assert tokens(0.0) == ()
    assert tokens(1.0) == (2, 2, 2, 2)


def test_with_a_negative_penalty_the_next_length_is_the_best_there_is() -> None:
    """The end costs log 0.3 at once; one token later it comes at 2 * log 0.7."""

    def step(token: int, position: int, state: Any) -> tuple[Array, Any]:
        return np.log([1e-9, 0.3, 0.7] if position == 0 else [1e-9, 1.0, 1e-9]), state

    decoded = decode(step, None, DecodingOptions(max_tokens=10, method="beam", beams=2, length_penalty=-1.0))
    assert (decoded.tokens, decoded.has_end) == ((2,), True)


@pytest.mark.parametrize("seed", range(8))
def test_one_beam_without_a_length_penalty_is_greedy(seed: int) -> None:
    step = history_model(6, seed)
    beam = decode(step, (), DecodingOptions(max_tokens=8, method="beam", beams=1, length_penalty=0.0))
    assert beam == decode(step, (), DecodingOptions(max_tokens=8))


def test_search_stops_once_no_beam_can_win() -> None:
    calls = itertools.count()

    def step(token: int, position: int, state: Any) -> tuple[Array, Any]:
        next(calls)
        return np.log([0.005, 0.99, 0.005]), state

    decode(step, None, DecodingOptions(max_tokens=500, method="beam", beams=2, length_penalty=0.0))
    assert next(calls) == 1


# --- oracle: transformers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, T5Decoder]:
    torch.manual_seed(1)
    config = HuggingFaceConfig(
        vocab_size=14, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=2, decoder_start_token_id=0
    )
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():  # livelier than at initialisation, where one token repeats for ever and the end rarely comes
        for parameter in model.decoder.block.parameters():
            parameter.mul_(3.0)
        model.shared.weight[EOS] *= 2.0
    directory = tmp_path_factory.mktemp("t5")
    model.save_pretrained(directory)
    return model, load_decoder(directory)


CASES = {
    "greedy": ({}, {}),
    "beam-2": ({"method": "beam", "beams": 2}, {"num_beams": 2}),
    "beam-4": ({"method": "beam", "beams": 4}, {"num_beams": 4}),
    "beam-4-unpenalised": ({"method": "beam", "beams": 4, "length_penalty": 0.0}, {"num_beams": 4, "length_penalty": 0.0}),
    "beam-3-long": ({"method": "beam", "beams": 3, "length_penalty": 2.0}, {"num_beams": 3, "length_penalty": 2.0}),
    "beam-3-short": ({"method": "beam", "beams": 3, "length_penalty": -1.0}, {"num_beams": 3, "length_penalty": -1.0}),
}


@pytest.mark.parametrize(("ours", "theirs"), CASES.values(), ids=CASES)
def test_tokens_equal_those_of_transformers(
    ours: dict[str, Any], theirs: dict[str, Any], t5: tuple[Any, T5Decoder], steps_over: Callable[..., Any]
) -> None:
    model, decoder = t5
    lengths = set()
    for seed in range(12):
        memory = 3 * torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(seed))
        beams = {"early_stopping": "never"} if "num_beams" in theirs else {}
        generated = model.generate(encoder_outputs=BaseModelOutput(memory), max_new_tokens=10, do_sample=False, **theirs, **beams)
        step, state = steps_over(decoder, memory, 10)
        decoded = decode(step, state, DecodingOptions(max_tokens=10, **ours))
        assert with_end(decoded) == tuple(generated[0, 1:].tolist())
        lengths.add(len(decoded.tokens))
    assert len(lengths) > 2, "the oracle must see ends at several lengths"


@pytest.mark.parametrize(
    "options",
    [{"top_k": 5}, {"top_p": 0.6}, {"top_k": 7, "top_p": 0.5, "temperature": 0.4}, {"temperature": 3.0}, {"top_k": 99}, {"top_p": 1.0}],
    ids=str,
)
def test_sampling_distribution_equals_transformers_warpers(options: dict[str, Any]) -> None:
    logits = np.random.default_rng(0).normal(scale=2.0, size=30)
    warped = torch.as_tensor(logits)[None]
    for name, warper in (("temperature", TemperatureLogitsWarper), ("top_k", TopKLogitsWarper), ("top_p", TopPLogitsWarper)):
        if name in options:
            warped = warper(options[name])(None, warped)
    ours = sampling_probabilities(logits, DecodingOptions(max_tokens=1, method="sample", **options))
    np.testing.assert_allclose(ours, warped.softmax(-1)[0].numpy(), rtol=1e-12, atol=1e-15)


# --- sampling -----------------------------------------------------------------------------------------------------------

LOGITS = np.log([0.05, 0.0, 0.4, 0.25, 0.2, 0.1], where=np.arange(6) != EOS, out=np.full(6, -np.inf))  # the end never comes


@pytest.mark.parametrize(
    ("options", "support"),
    [
        ({}, {0, 2, 3, 4, 5}),
        ({"top_k": 2}, {2, 3}),
        ({"top_p": 0.7}, {2, 3, 4}),
        ({"top_p": 0.01}, {2}),
        ({"top_k": 3, "top_p": 0.7}, {2, 3}),
    ],
    ids=str,
)
def test_samples_come_from_the_support_in_their_proportions(options: dict[str, Any], support: set[int]) -> None:
    settings = DecodingOptions(max_tokens=4000, method="sample", seed=7, **options)
    decoded = decode(constant_model(LOGITS), None, settings)
    observed = np.bincount(decoded.tokens, minlength=6)
    assert set(np.flatnonzero(observed)) == support
    weights = np.where(np.isin(np.arange(6), list(support)), np.exp(LOGITS), 0.0)
    kept = np.flatnonzero(weights)
    expected = 4000 * weights[kept] / weights.sum()
    freedom = kept.size - 1
    chi_square = ((observed[kept] - expected) ** 2 / expected).sum()
    assert chi_square <= freedom + 4 * math.sqrt(2 * freedom)
    assert decoded.log_probability == pytest.approx(log_softmax(LOGITS)[list(decoded.tokens)].sum())


def test_top_k_keeps_k_even_among_equals() -> None:
    chances = sampling_probabilities(np.zeros(5), DecodingOptions(max_tokens=1, method="sample", top_k=2))
    np.testing.assert_array_equal(chances, [0.5, 0.5, 0.0, 0.0, 0.0])


def test_the_seed_decides_the_sample() -> None:
    options = DecodingOptions(max_tokens=20, method="sample", seed=1)
    step = constant_model(LOGITS)
    assert decode(step, None, options) == decode(step, None, options)
    assert decode(step, None, options) != decode(step, None, replace(options, seed=2))


@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1e-320, 0], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_temperature_towards_zero_is_greedy(temperature: float, seed: int) -> None:
    step = history_model(9, seed, spread=20.0)
    sampled = decode(step, (), DecodingOptions(max_tokens=8, method="sample", temperature=temperature, seed=seed))
    assert sampled == decode(step, (), DecodingOptions(max_tokens=8))


METHODS = [{"method": "greedy"}, {"method": "sample"}, {"method": "beam", "beams": 3}]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["method"])
def test_tokens_ruled_out_by_the_model_are_never_chosen(method: dict[str, Any]) -> None:
    assert set(decode(constant_model(LOGITS), None, DecodingOptions(max_tokens=6, **method)).tokens) <= {0, 2, 3, 4, 5}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["method"])
def test_a_token_of_probability_0_is_never_continued(method: dict[str, Any]) -> None:
    asked: set[int] = set()

    def step(token: int, position: int, state: Any) -> tuple[Array, Any]:
        asked.add(token)
        return np.array([-np.inf, -np.inf, -np.inf, 0.0]), state

    assert decode(step, None, DecodingOptions(max_tokens=3, **method)).tokens == (3, 3, 3)
    assert asked == {0, 3}, "the start and the only token"


# --- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["method"])
@pytest.mark.parametrize(
    ("logits", "named"),
    [
        ([0.0, np.nan, 1.0], "position 0 .* not finite .*nan"),
        ([0.0, np.inf, 1.0], "position 0 .* not finite .*inf"),
        ([-np.inf, -np.inf], "position 0 .* not finite .*-inf"),
        ([[0.0, 1.0]], r"position 0 .* shape \(1, 2\)"),
        ([], r"position 0 .* shape \(0,\)"),
    ],
    ids=["nan", "inf", "nothing-possible", "matrix", "empty"],
)
def test_logits_that_are_no_distribution_are_refused(logits: Any, named: str, method: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=named):
        decode(constant_model(logits), None, DecodingOptions(max_tokens=2, **method))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": 2.5}, "max_tokens=2.5"),
        ({"method": "best"}, "'best'; choose one of greedy, sample, beam"),
        ({"method": "sample", "top_k": 0}, "top_k=0"),
        ({"method": "sample", "top_p": 0.0}, "top_p=0.0"),
        ({"method": "sample", "top_p": 1.5}, "top_p=1.5"),
        ({"method": "sample", "temperature": -1.0}, "temperature=-1.0"),
        ({"method": "sample", "temperature": math.nan}, "temperature=nan"),
        ({"method": "sample", "seed": -1}, "seed=-1"),
        ({"method": "beam", "beams": 0}, "beams=0"),
        ({"method": "beam", "length_penalty": math.inf}, "length_penalty=inf"),
        ({"top_k": 5}, "top_k=5 has no effect with method 'greedy', only with 'sample'"),
        ({"method": "sample", "beams": 2}, "beams=2 has no effect with method 'sample', only with 'beam'"),
        ({"max_tokens": -1, "method": "sample", "top_p": 2}, "max_tokens=-1; a whole number from 1 up; top_p=2"),
    ],
    ids=lambda value: "-".join(f"{name}" for name in value) if isinstance(value, dict) else "",
)
def test_options_that_cannot_be_are_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        DecodingOptions(**{"max_tokens": 4} | options)
    assert named in str(refusal.value)


# --- cache --------------------------------------------------------------------------------------------------------------


def surfaces(*values: float) -> list[Array]:
    return [np.full((2, 2), value) for value in values]


def test_surfaces_that_round_alike_are_computed_once() -> None:
    cache: SurfaceCache[int] = SurfaceCache(capacity=4, decimals=2)
    computed: list[float] = []

    def compute(surface: Array) -> int:
        computed.append(surface[0, 0])
        return len(computed)

    for surface in surfaces(0.5, 0.5004, 0.51, -0.001, 0.0):
        cache.get_or_compute(surface, compute)
    assert computed == [0.5, 0.51, -0.001]  # -0.001 rounds to the -0.0 that equals 0.0
    assert len(cache) == 3


def test_dtype_does_not_matter_and_shape_does() -> None:
    cache: SurfaceCache[str] = SurfaceCache(capacity=4, decimals=3)
    surface = np.linspace(-1, 1, 12).reshape(3, 4)
    assert cache.get_or_compute(surface, lambda _: "first") == "first"
    assert cache.get_or_compute(surface.astype(np.float32), lambda _: "second") == "first"
    assert cache.get_or_compute(surface.reshape(4, 3), lambda _: "third") == "third"


def test_the_surface_unused_longest_makes_room() -> None:
    cache: SurfaceCache[float | str] = SurfaceCache(capacity=2, decimals=3)
    a, b, c = surfaces(1.0, 2.0, 3.0)
    for surface in (a, b, a, c):  # b is the one unused longest
        cache.get_or_compute(surface, lambda surface: surface[0, 0])
    assert len(cache) == 2
    assert cache.get_or_compute(a, lambda _: "computed again") == 1.0
    assert cache.get_or_compute(b, lambda _: "computed again") == "computed again"


def test_failed_computations_are_not_cached() -> None:
    cache: SurfaceCache[str] = SurfaceCache(capacity=2, decimals=3)

    def fail(surface: Array) -> str:
        raise InputError("no text")

    with pytest.raises(InputError, match="no text"):
        cache.get_or_compute(np.ones(3), fail)
    assert cache.get_or_compute(np.ones(3), lambda _: "text") == "text"


@pytest.mark.parametrize("settings", [(0, 3), (4, -1)], ids=["capacity", "decimals"])
def test_a_cache_that_cannot_be_is_refused(settings: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="surface cache"):
        SurfaceCache(*settings)


def test_a_surface_that_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        SurfaceCache[int](2, 3).get_or_compute(np.array([1.0, np.nan]), len)


# --- correction ---------------------------------------------------------------------------------------------------------


def table_refinement(
    target: Sequence[float] | Array, encodings: Sequence[Sequence[float]], rounds: int
) -> tuple[RefinedResult[int], list[Array]]:
    """Hypothesis i of the decoder encodes to ``encodings[i]``; also gives the surfaces that were decoded."""
    asked: list[Array] = []

    def decode_surface(surface: Array) -> int:
        asked.append(surface)
        return len(asked) - 1

    return refine(np.asarray(target), decode_surface, lambda hypothesis: np.asarray(encodings[hypothesis]), rounds), asked


def test_a_correction_decodes_the_surface_shifted_by_the_difference() -> None:
    _, asked = table_refinement([1.0, 0.0], [[0.5, 0.25], [0.75, 0.5], [9.0, 9.0]], rounds=2)
    np.testing.assert_array_equal(asked, [[1.0, 0.0], [1.5, -0.25], [1.25, -0.5]])


def test_the_hypothesis_of_the_highest_cosine_wins() -> None:
    result, _ = table_refinement([1.0, 0.0], [[1.0, 1.0], [1.0, 0.1], [0.0, 1.0]], rounds=2)
    assert (result.hypothesis, result.round) == (1, 1)
    assert result.cosine == pytest.approx(1 / math.sqrt(1.01))
    assert result.cosines == pytest.approx((math.sqrt(0.5), 1 / math.sqrt(1.01), 0.0))


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-4, 4), min_size=3, max_size=3), min_size=1, max_size=6))
def test_the_result_is_never_worse_than_the_first_decoding_nor_than_any_round(encodings: Sequence[Sequence[float]]) -> None:
    result, asked = table_refinement([1.0, 2.0, -1.0], encodings, rounds=len(encodings) - 1)
    assert result.cosine == max(result.cosines)
    assert result.cosine == result.cosines[result.round]
    assert result.cosines.index(result.cosine) == result.round, "equal cosines keep the earlier round"
    assert len(asked) == len(result.cosines) <= len(encodings)


def test_rounds_end_once_a_hypothesis_repeats() -> None:
    result, asked = table_refinement([1.0, 0.0], [[1.0, 1.0]] * 9, rounds=8)
    assert len(asked) == 2
    assert result.round == 0


def test_correction_recovers_the_text_that_a_biased_decoder_misses() -> None:
    """A decoder that always lands short by a fixed offset is put right by one round."""
    target, offset = np.array([0.6, -0.2, 0.4]), np.array([0.3, 0.3, 0.0])
    result = refine(target, lambda surface: surface - offset, lambda hypothesis: hypothesis, rounds=3)
    assert result.cosines[0] < 0.85
    assert result.cosine == pytest.approx(1.0)


def test_no_rounds_is_one_plain_decoding_in_the_dtype_given() -> None:
    result, asked = table_refinement(np.array([1.0, 0.0], dtype=np.float16), [[0.0, 0.0]], rounds=0)
    assert (result.hypothesis, result.cosine, len(asked)) == (0, 0.0, 1)
    assert asked[0].dtype == np.float16


@pytest.mark.parametrize(
    ("target", "encoding", "rounds", "error", "named"),
    [
        ([1.0], [1.0], -1, ConfigError, "rounds=-1"),
        ([np.nan], [1.0], 1, InputError, "the surface has values that are not finite"),
        ([1.0], [np.inf], 1, InputError, "the surface of the hypothesis has values that are not finite"),
        ([1.0], [1.0, 1.0], 1, InputError, r"shape \(2,\); the target's is \(1,\)"),
    ],
    ids=["rounds", "nan", "inf", "shape"],
)
def test_a_correction_that_cannot_be_is_refused(
    target: Sequence[float] | Array, encoding: list[float], rounds: int, error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        table_refinement(target, [encoding] * 3, rounds)
