"""The stages of an energy-flow bundle, wired for use: text in, text out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coreflow.models.arrays import Array, Arrays
from coreflow.models.data.tokenizers import TextTokenizer
from coreflow.models.energy.config import EnergyConfig
from coreflow.models.energy.decoding import Decoded, DecodingOptions, SurfaceCache, decode, refine
from coreflow.models.energy.lattice import FlowStatistics
from coreflow.models.energy.wiring import Carried, Wiring
from coreflow.models.errors import ConfigError, InputError
from coreflow.models.family import ChainResult, Predict

CACHED_SURFACES = 256
CACHE_DECIMALS = 3  # of a surface in [-1, 1]: about what fp16 keeps
_SAMPLING = ("top_k", "top_p", "temperature")


@dataclass(frozen=True, kw_only=True, eq=False)
class EnergyResult(ChainResult):
    """One text through the chain.

    >>> result = Chain.load("artifacts/demo").run("the patient farmer danced behind the old mill")
    >>> result.text, result.statistics.arrived_share, result.unknown
    """

    tokens: tuple[int, ...]
    log_probability: float
    input_surface: Array  # (H, W), entering the lattice
    output_surface: Array  # (H, W), leaving it
    statistics: FlowStatistics
    tables: tuple[Arrays, ...]  # the flow table before and after every step
    dropped_tokens: int  # of the input, beyond the encoder's length
    unknown: tuple[str, ...]  # parts of the input that the encoder's vocabulary lacks
    corrections: int  # rounds of iterative correction that the kept text took
    cosine: float | None  # of the surface and the re-encoded text; None without correction

    def to_json(self, backend: str) -> dict[str, Any]:
        """Everything about the text, for programs."""
        return {
            "text": self.text,
            "tokens": list(self.tokens),
            "log_probability": self.log_probability,
            "backend": backend,
            "dropped_tokens": self.dropped_tokens,
            "unknown": list(self.unknown),
            "corrections": self.corrections,
            "cosine": self.cosine,
            "statistics": {**asdict(self.statistics), "arrived_share": self.statistics.arrived_share},
            "times": {name: asdict(time) for name, time in self.times.items()},
            "input_surface": self.input_surface.tolist(),
            "output_surface": self.output_surface.tolist(),
        }

    def details(self) -> list[str]:
        """The statistics of the flows, and how the correction ended."""
        flows = self.statistics
        lines = [
            f"flows: {flows.started} started, {flows.spawned} spawned, {flows.died} died, {flows.arrived} arrived "
            f"({flows.arrived_share:.0%}) in {flows.steps} steps; active {' -> '.join(map(str, flows.active))}; "
            f"mean energy {' -> '.join(f'{energy:.3f}' for energy in flows.mean_energy)}"
        ]
        if self.cosine is not None:
            lines.append(f"correction: round {self.corrections} kept, cosine of the re-encoded text {self.cosine:.4f}")
        return lines


class EnergyPipeline:
    """The stages with their tokenizers; ``predict`` executes a stage.

    >>> pipeline = EnergyPipeline(config, wordpiece, unigram, predict)
    >>> pipeline.run("the patient farmer danced behind the old mill").text
    """

    def __init__(self, config: EnergyConfig, wordpiece: TextTokenizer, unigram: TextTokenizer, predict: Predict) -> None:
        self.config = config
        self.wordpiece = wordpiece
        self.unigram = unigram
        self.wiring = Wiring(config, predict)
        self._caches: dict[DecodingOptions, SurfaceCache[Decoded]] = {}

    def options(self, flags: Mapping[str, Any]) -> DecodingOptions:
        """Beam search when ``beams`` is given, sampling when one of its settings is, greedy decoding otherwise."""
        length = flags.get("max_tokens") or self.config.decode_length
        sampled = {name: flags[name] for name in _SAMPLING if name in flags}
        if "beams" in flags and sampled:
            raise ConfigError(f"--beams searches and --{'/--'.join(sampled).replace('_', '-')} samples; give one or the other")
        if "beams" in flags:
            return DecodingOptions(max_tokens=length, method="beam", beams=flags["beams"])
        if sampled:
            return DecodingOptions(max_tokens=length, method="sample", seed=flags.get("seed", 0), **sampled)
        return DecodingOptions(max_tokens=length)

    def run(self, text: str, options: DecodingOptions | None = None, *, corrections: int = 0) -> EnergyResult:
        """Text through encoder, lattice and decoder.

        ``corrections``: at most so many rounds, each of which encodes the text again and decodes with the difference added; the text whose
        surface is nearest is kept. Raises ``InputError`` for text without a word.
        """
        encoded = self.wordpiece.encode(text, self.config.text_length)
        entering = self.wiring.encode(encoded.ids[None], encoded.mask[None].astype(np.float32))
        carried = self.wiring.carry(entering)
        options = options or DecodingOptions(max_tokens=self.config.decode_length)
        if options.max_tokens > self.config.decode_length:
            raise InputError(f"max_tokens={options.max_tokens}; this decoder writes {self.config.decode_length} at most")
        cosine, rounds = None, 0
        if corrections:
            refined = refine(carried.surface, lambda surface: self.decode(surface, options), self._surface_of, corrections)
            decoded, cosine, rounds = refined.hypothesis, refined.cosine, refined.round
        else:
            decoded = self.decode(carried.surface, options)
        shape = (self.config.height, self.config.width)
        return EnergyResult(
            text=self.unigram.decode(decoded.tokens),
            warnings=self._warnings(encoded.dropped, encoded.unknown),
            tokens=decoded.tokens,
            log_probability=decoded.log_probability,
            input_surface=entering.reshape(shape),
            output_surface=carried.surface.reshape(shape),
            statistics=carried.statistics,
            tables=carried.tables,
            dropped_tokens=encoded.dropped,
            unknown=encoded.unknown,
            corrections=rounds,
            cosine=cosine,
        )

    def run_embedding(self, embedding: Array) -> tuple[Array, Carried]:
        """An embedding (E,) through mapper, lattice and mapper: the embedding (E,) that comes back, and how it was carried."""
        expected = (self.config.embedding_size,)
        if np.shape(embedding) != expected:
            raise InputError(f"embedding of shape {np.shape(embedding)}; {expected} is right")
        carried = self.wiring.carry(self.wiring.embedding_to_surface(np.asarray(embedding, np.float32)[None]))
        return self.wiring.surface_to_embedding(carried.surface)[0], carried

    def decode(self, surface: Array, options: DecodingOptions) -> Decoded:
        """Tokens for a surface (1, S) that left the lattice; the same surface, rounded, is decoded once."""

        def compute(surface: Array) -> Decoded:
            t5 = self.config.decoder
            return decode(*self.wiring.decoder(surface), options, start_id=t5.pad_id, eos_id=t5.eos_id)

        if options not in self._caches:
            self._caches[options] = SurfaceCache(CACHED_SURFACES, CACHE_DECIMALS)
        return self._caches[options].get_or_compute(surface, compute)

    def plot(self, result: EnergyResult, path: Path) -> None:
        """Save a picture of the surfaces and the paths of the flows."""
        from coreflow.models.energy.chain.plot import plot_flows

        plot_flows(result, self.config, path)

    def _surface_of(self, decoded: Decoded) -> Array:
        """The surface that leaves the lattice for a decoded text; zeros for one without a word."""
        text = self.unigram.decode(decoded.tokens)
        if not text.strip():
            return np.zeros((1, self.config.surface_size), np.float32)
        encoded = self.wordpiece.encode(text, self.config.text_length)
        return self.wiring.carry(self.wiring.encode(encoded.ids[None], encoded.mask[None].astype(np.float32))).surface

    def _warnings(self, dropped: int, unknown: tuple[str, ...]) -> tuple[str, ...]:
        lines = []
        if dropped:
            lines.append(f"the encoder reads {self.config.text_length} tokens; {dropped} tokens of the text were dropped")
        if unknown:
            lines.append(f"not in the encoder's vocabulary, read as unknown: {', '.join(map(repr, unknown))}")
        return tuple(lines)
