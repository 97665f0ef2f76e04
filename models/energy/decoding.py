"""From logits to tokens: greedy, sampled and beam decoding over any step function, and correction rounds on top of it.

numpy only, so that torch models and packages share it. Nothing here knows what a model's state is: a step takes one and
gives back another, and because it never writes into the one it was given, beams may share it.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Generic, Literal, TypeVar

import numpy as np

from coreflow.models.arrays import Array
from coreflow.models.errors import ConfigError, InputError

State = TypeVar("State")
Hypothesis = TypeVar("Hypothesis")
Value = TypeVar("Value")


StepFunction = Callable[[int, int, State], tuple[Array, State]]
"""(token, its position, state) -> (logits (V,) of the token after it, next state); the given state stays as it is."""

Method = Literal["greedy", "sample", "beam"]
METHODS: tuple[Method, ...] = ("greedy", "sample", "beam")
# Which method reads a setting; for any other, setting it is a mistake that would go unseen.
_READER = {"top_k": "sample", "top_p": "sample", "temperature": "sample", "seed": "sample", "beams": "beam", "length_penalty": "beam"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingOptions:
    """Method and settings by which tokens are chosen.

    >>> DecodingOptions(max_tokens=32)
    >>> DecodingOptions(max_tokens=32, method="sample", top_k=40, top_p=0.9, temperature=0.7, seed=1)
    >>> DecodingOptions(max_tokens=32, method="beam", beams=4, length_penalty=0.6)
    """

    max_tokens: int  # the end token counts
    method: Method = "greedy"
    top_k: int | None = None  # keep the k likeliest tokens
    top_p: float | None = None  # of these, the fewest likeliest that hold this share of the probability
    temperature: float = 1.0  # divides the logits; 0 is greedy
    beams: int = 4
    length_penalty: float = 1.0  # a hypothesis scores log probability / tokens ** length_penalty
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"decoding method {self.method!r}; choose one of {', '.join(METHODS)}")
        problems = []
        for name, low in (("max_tokens", 1), ("beams", 1), ("seed", 0), ("top_k", 1)):
            value = getattr(self, name)
            if not (type(value) is int and value >= low) and not (name == "top_k" and value is None):
                problems.append(f"{name}={value!r}; a whole number from {low} up")
        if self.top_p is not None and not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            problems.append(f"top_p={self.top_p!r}; 0 < top_p <= 1")
        if not (_is_number(self.temperature) and 0 <= self.temperature < math.inf):
            problems.append(f"temperature={self.temperature!r}; a number from 0 up")
        if not (_is_number(self.length_penalty) and math.isfinite(self.length_penalty)):
            problems.append(f"length_penalty={self.length_penalty!r}; a finite number")
        defaults = {field.name: field.default for field in fields(self)}
        problems += [
            f"{name}={getattr(self, name)!r} has no effect with method {self.method!r}, only with {reader!r}"
            for name, reader in _READER.items()
            if reader != self.method and getattr(self, name) != defaults[name]
        ]
        if problems:
            raise ConfigError(f"decoding: {'; '.join(problems)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The tokens of one decoding.

    >>> decoded = decode(step, state, DecodingOptions(max_tokens=32))
    >>> tokenizer.decode(decoded.tokens), decoded.log_probability
    """

    tokens: tuple[int, ...]  # without the start and the end token
    log_probability: float  # natural; of the tokens and, where it came, the end, under the model itself at temperature 1
    has_end: bool  # whether the end token came before max_tokens were spent


def decode(step: StepFunction[State], initial_state: State, options: DecodingOptions, start_id: int = 0, eos_id: int = 1) -> Decoded:
    """Tokens that follow ``start_id`` up to ``eos_id`` or ``options.max_tokens``.

    Equal inputs give equal results: ties go to the lower token id, sampling draws from ``options.seed``. Raises InputError if
    the logits of a step are not a vector or not numbers.
    """
    if options.method == "beam":
        return _search_beams(step, initial_state, options, start_id, eos_id)
    random = np.random.default_rng(options.seed)
    tokens: list[int] = []
    token, state, log_probability = start_id, initial_state, 0.0
    for position in range(options.max_tokens):
        log_probabilities, state = _advance(step, token, position, state)
        if options.method == "sample" and options.temperature > 0:
            chances = sampling_probabilities(log_probabilities, options)
            token = int(random.choice(chances.size, p=chances))
        else:
            token = int(log_probabilities.argmax())
        log_probability += float(log_probabilities[token])
        if token == eos_id:
            return Decoded(tokens=tuple(tokens), log_probability=log_probability, has_end=True)
        tokens.append(token)
    return Decoded(tokens=tuple(tokens), log_probability=log_probability, has_end=False)


def sampling_probabilities(logits: Array, options: DecodingOptions) -> Array:
    """The distribution (V,) that ``method="sample"`` draws from: temperature, then top-k, then top-p, then renormalised.

    ``options.temperature`` is above 0.
    """
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the maximum to -inf, which is its meaning
        scaled = (logits - logits.max()) / options.temperature
    kept = _largest(scaled, options.top_k or scaled.size)  # likeliest first
    chances = np.exp(scaled[kept])
    chances /= chances.sum()
    if options.top_p is not None:
        # The token that crosses the share still belongs to it.
        within = int(np.searchsorted(np.cumsum(chances), options.top_p)) + 1
        kept, chances = kept[:within], chances[:within]
    probabilities = np.zeros(logits.size)
    probabilities[kept] = chances / chances.sum()
    return probabilities


@dataclass(frozen=True, slots=True)
class _Beam(Generic[State]):
    tokens: tuple[int, ...]
    log_probability: float
    state: State


def _search_beams(step: StepFunction[State], initial_state: State, options: DecodingOptions, start_id: int, eos_id: int) -> Decoded:
    """The hypothesis of the highest score among those that stay within the ``beams`` likeliest at every length."""
    beams = [_Beam((), 0.0, initial_state)]
    best: Decoded | None = None
    best_score = -math.inf
    for position in range(options.max_tokens):
        length = position + 1
        advanced = [_advance(step, beam.tokens[-1] if beam.tokens else start_id, position, beam.state) for beam in beams]
        totals = np.stack([beam.log_probability + row for beam, (row, _) in zip(beams, advanced, strict=True)])
        # One end token a beam at most, so twice as many continuations always leave enough that go on.
        ranked = [
            (*divmod(int(index), totals.shape[1]), float(totals.flat[index])) for index in _largest(totals.ravel(), 2 * options.beams)
        ]
        going = []
        for rank, (parent, token, total) in enumerate(ranked):
            if total == -math.inf:  # the model rules it out
                break
            if token != eos_id and length < options.max_tokens:
                going.append(_Beam((*beams[parent].tokens, token), total, advanced[parent][1]))
            elif rank < options.beams and (score := total / length**options.length_penalty) > best_score:
                # An end beyond the likeliest ``beams`` is not a hypothesis; it made room for one that goes on.
                tokens = beams[parent].tokens if token == eos_id else (*beams[parent].tokens, token)
                best, best_score = Decoded(tokens=tokens, log_probability=total, has_end=token == eos_id), score
        beams = going[: options.beams]
        # Log probabilities only fall. What can still be gained comes from the length that divides them most.
        longest = options.max_tokens if options.length_penalty > 0 else length + 1
        if not beams or beams[0].log_probability / longest**options.length_penalty <= best_score:
            break
    assert best is not None
    return best


def _advance(step: StepFunction[State], token: int, position: int, state: State) -> tuple[Array, State]:
    """Log probabilities (V,) in float64 of the token after ``token``, and the next state."""
    raw, state = step(token, position, state)
    logits = np.asarray(raw, dtype=np.float64)
    if logits.ndim != 1 or logits.size == 0:
        raise InputError(f"the step at position {position} gave logits of shape {logits.shape}; one value a token is needed")
    highest = logits.max()  # NaN if any is
    if not math.isfinite(highest):
        raise InputError(f"the step at position {position} gave logits that are not finite (their maximum is {highest})")
    shifted = logits - highest
    return shifted - math.log(np.exp(shifted).sum()), state


def _largest(values: Array, count: int) -> Array:
    """Indices of the ``count`` largest values, largest first, the lower index first among equals."""
    if count < values.size:
        threshold = np.partition(values, -count)[-count]
        candidates = np.flatnonzero(values >= threshold)
    else:
        candidates = np.arange(values.size)
    return candidates[np.argsort(-values[candidates], kind="stable")][:count]


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


class SurfaceCache(Generic[Value]):
    """Results for the surfaces used last; surfaces that agree to ``decimals`` decimals count as one.

    A cache belongs to one model and one set of options: the surface is all that it looks at.

    >>> cache = SurfaceCache[str](capacity=256, decimals=3)
    >>> text = cache.get_or_compute(surface, decode_surface)
    """

    def __init__(self, capacity: int, decimals: int) -> None:
        if capacity < 1 or decimals < 0:
            raise ConfigError(f"surface cache: capacity={capacity}, decimals={decimals}; at least 1 and 0")
        self.capacity = capacity
        self.decimals = decimals
        self._entries: OrderedDict[tuple[tuple[int, ...], bytes], Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get_or_compute(self, surface: Array, compute: Callable[[Array], Value]) -> Value:
        """The value kept for ``surface``, or ``compute(surface)``, kept from now on; the one unused longest makes room."""
        key = self._key(surface)
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        value = compute(surface)
        self._entries[key] = value
        if len(self._entries) > self.capacity:
            self._entries.popitem(last=False)
        return value

    def _key(self, surface: Array) -> tuple[tuple[int, ...], bytes]:
        rounded = np.round(_checked(surface, "surface"), self.decimals) + 0.0  # + 0.0 makes one of -0.0 and 0.0
        return rounded.shape, rounded.tobytes()


@dataclass(frozen=True, slots=True)
class RefinedResult(Generic[Hypothesis]):
    """The best hypothesis of ``refine`` and how each round fared.

    >>> refined = refine(surface, decode_surface, encode_text, rounds=3)
    >>> refined.hypothesis, refined.round, refined.cosines
    """

    hypothesis: Hypothesis
    cosine: float
    round: int  # the round that gave it; 0 is the uncorrected decoding
    cosines: tuple[float, ...]  # of every round that ran


def refine(
    surface: Array, decode_surface: Callable[[Array], Hypothesis], encode_text: Callable[[Hypothesis], Array], rounds: int
) -> RefinedResult[Hypothesis]:
    """Decodes ``surface``, then corrects up to ``rounds`` times; the hypothesis whose own surface is nearest by cosine wins.

    A correction decodes the surface shifted by what the last hypothesis missed, surface + (surface - encoded). Equal cosines
    keep the earlier round, so the result is never worse than the first decoding. Rounds end early when a hypothesis encodes
    to a surface seen before: a deterministic decoder would repeat itself from there.
    """
    if rounds < 0:
        raise ConfigError(f"rounds={rounds}; 0 decodes once, every further round corrects once")
    target = _checked(surface, "surface")
    decoded_from = target
    best: tuple[Hypothesis, int] | None = None
    cosines: list[float] = []
    seen: set[bytes] = set()
    for number in range(rounds + 1):
        hypothesis = decode_surface(decoded_from.astype(np.asarray(surface).dtype))
        encoded = _checked(encode_text(hypothesis), "surface of the hypothesis")
        if encoded.shape != target.shape:
            raise InputError(f"the hypothesis encodes to a surface of shape {encoded.shape}; the target's is {target.shape}")
        cosines.append(_cosine(encoded, target))
        if best is None or cosines[-1] > cosines[best[1]]:
            best = hypothesis, number
        if encoded.tobytes() in seen:
            break
        seen.add(encoded.tobytes())
        decoded_from = target + (target - encoded)
    assert best is not None
    return RefinedResult(best[0], cosines[best[1]], best[1], tuple(cosines))


def _checked(surface: Array, what: str) -> Array:
    values = np.asarray(surface, dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"the {what} has values that are not finite")
    return values


def _cosine(left: Array, right: Array) -> float:
    """Of two tensors of one shape; 0 where one has no direction."""
    scale = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(np.vdot(left, right)) / scale if scale > 0 else 0.0
