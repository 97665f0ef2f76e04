"""The stages of a bundle, wired together: text in, text out."""

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from coreflow.export.package.manifest import Manifest, read_manifest
from coreflow.models.arrays import Array, Arrays
from coreflow.models.data.tokenizers import TextTokenizer
from coreflow.models.energy.config import EnergyConfig
from coreflow.models.energy.decoding import Decoded, DecodingOptions, SurfaceCache, decode, refine
from coreflow.models.energy.lattice import FlowStatistics
from coreflow.models.energy.wiring import Carried, Wiring
from coreflow.models.errors import BundleError, InputError
from coreflow.models.training.checkpoint import CONFIG, UNIGRAM, WORDPIECE, load_config
from coreflow.runtime.backend import Backend, ComputeUnits, EngineName, Model, NumericsName
from coreflow.runtime.load import load_model

CACHED_SURFACES = 256
CACHE_DECIMALS = 3  # of a surface in [-1, 1]: about what fp16 keeps


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """How often a stage ran for one text, and how long in all."""

    calls: int
    total_ms: float


@dataclass(frozen=True, kw_only=True, eq=False)
class ChainResult:
    """One text through the chain."""

    text: str
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
    times: Mapping[str, StageTime]


class Chain:
    """Six loaded stages with their tokenizers.

    >>> Chain.load("artifacts/demo").run("the patient farmer danced behind the old mill").text
    """

    def __init__(
        self, manifest: Manifest, config: EnergyConfig, wordpiece: TextTokenizer, unigram: TextTokenizer, stages: Mapping[str, Model]
    ) -> None:
        self.manifest = manifest
        self.config = config
        self.wordpiece = wordpiece
        self.unigram = unigram
        self.stages = stages
        self.wiring = Wiring(config, self._predict)
        self._times: dict[str, list[float]] = defaultdict(list)
        self._caches: dict[DecodingOptions, SurfaceCache[Decoded]] = {}

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        backend: Backend = "auto",
        *,
        numerics: NumericsName = "fp16",
        device: str = "cpu",
        engine: EngineName = "auto",
        compute_units: ComputeUnits = "all",
        verify: bool = True,
    ) -> Self:
        """The chain in the bundle at ``bundle``; arguments as ``load_model``'s.

        Every file is compared with its digest first, unless ``verify`` is False. ``BundleError`` names what is missing or changed.
        """
        folder = Path(bundle)
        manifest = read_manifest(folder, verify=verify)
        if manifest.kind != "energy-flow" or manifest.companions is None:
            raise BundleError(
                f"{folder} holds {', '.join(manifest.stages)} and no chain; load its packages with coreflow.runtime.load_model"
            )
        companions = folder / manifest.companions
        config = load_config(companions / CONFIG)
        stages = {
            name: load_model(folder / stage.package, backend, numerics=numerics, device=device, engine=engine, compute_units=compute_units)
            for name, stage in manifest.stages.items()
        }
        return cls(manifest, config, TextTokenizer.load(companions / WORDPIECE), TextTokenizer.load(companions / UNIGRAM), stages)

    @property
    def backend(self) -> str:
        """``coreml`` or ``lifted``: what really executes."""
        return next(iter(self.stages.values())).backend

    def run(self, text: str, options: DecodingOptions | None = None, *, corrections: int = 0) -> ChainResult:
        """Text through encoder, lattice and decoder.

        ``corrections``: so many rounds at most in which the text is encoded again and decoded with the difference added; the one
        nearest to the surface is kept. Raises ``InputError`` for text without a word.
        """
        self._times.clear()
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
        return ChainResult(
            text=self.unigram.decode(decoded.tokens),
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
            times={name: StageTime(calls=len(each), total_ms=sum(each) * 1e3) for name, each in self._times.items()},
        )

    def run_embedding(self, embedding: Array) -> tuple[Array, Carried]:
        """An embedding (E,) through mapper, lattice and mapper: what comes back (E,), and how it was carried."""
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

    def _surface_of(self, decoded: Decoded) -> Array:
        """The surface that leaves the lattice for a decoded text; zeros for one without a word."""
        text = self.unigram.decode(decoded.tokens)
        if not text.strip():
            return np.zeros((1, self.config.surface_size), np.float32)
        encoded = self.wordpiece.encode(text, self.config.text_length)
        return self.wiring.carry(self.wiring.encode(encoded.ids[None], encoded.mask[None].astype(np.float32))).surface

    def _predict(self, name: str, inputs: Arrays) -> dict[str, Any]:
        began = time.perf_counter()
        outputs = self.stages[name].predict(inputs)
        self._times[name].append(time.perf_counter() - began)
        return outputs
