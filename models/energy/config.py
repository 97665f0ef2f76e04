"""Settings of an energy-flow model, and the four presets."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from coreflow.models.errors import ConfigError
from coreflow.models.t5.config import T5Config


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyConfig:
    """Everything that decides the shapes and the rules of one energy-flow model.

    >>> config = PRESETS["demo"].config("demo", vocabulary=300, decoder_vocabulary=300)
    >>> config.surface_size == config.height * config.width
    True
    >>> EnergyConfig.from_json(config.to_json()) == config
    True

    Lengths are in tokens, lattice extents in cells, energies in the unit of the surface (the encoder's tanh keeps it in [-1, 1]).
    """

    preset: str
    width: int  # W, cells along x
    height: int  # H, cells along y
    depth: int  # D, cells along z; flows travel towards z = D - 1
    max_flows: int  # N, slots of the flow table
    carrier_hidden: int
    carrier_layers: int
    vocabulary: int  # of the encoder's WordPiece tokenizer
    text_length: int  # L, tokens that the encoder reads
    decode_length: int  # T, tokens that the decoder writes at most
    decoder: T5Config
    decoder_tokens: int  # entries of the decoder's Unigram tokenizer; its head may have more, which are never chosen
    encoder_width: int = 256
    encoder_heads: int = 8
    encoder_feed_forward: int = 512
    encoder_layers: int = 2
    encoder_positions: int = 512
    embedding_size: int = 768  # E, of the teacher
    mapper_hidden: int = 256
    adapter_hidden: int = 512
    memory_tokens: int = 16  # M, vectors that the decoder attends to
    neuron_hidden: int = 64
    neuron_output: int = 128
    energy_threshold: float = 0.1
    spawn_threshold: float = 0.8
    max_spawn_per_step: int = 10
    injection_plane: int | None = None  # None: D // 2
    max_steps: int | None = None  # None: D, more than any flow needs, since a flow that does not advance dies
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and field.name != "injection_plane" and value < 1:
                raise ConfigError(f"{field.name}={value}; at least 1 is needed")
        if not 0 <= self.plane < self.depth - 1:
            raise ConfigError(f"injection_plane={self.injection_plane}; flows start at a plane from 0 to depth - 2 = {self.depth - 2}")
        if self.encoder_width % self.encoder_heads:
            raise ConfigError(f"encoder_width={self.encoder_width} is not a multiple of encoder_heads={self.encoder_heads}")
        if self.text_length > self.encoder_positions:
            raise ConfigError(f"text_length={self.text_length} exceeds encoder_positions={self.encoder_positions}")
        if self.decoder_tokens > self.decoder.vocab_size:
            raise ConfigError(f"decoder_tokens={self.decoder_tokens} exceeds the decoder's vocabulary of {self.decoder.vocab_size}")
        if not 0 <= self.energy_threshold < self.spawn_threshold:
            raise ConfigError(f"energy_threshold={self.energy_threshold} must lie in [0, spawn_threshold={self.spawn_threshold})")

    @property
    def surface_size(self) -> int:
        """S = H * W."""
        return self.height * self.width

    @property
    def plane(self) -> int:
        """Depth at which the surface enters the lattice."""
        return self.depth // 2 if self.injection_plane is None else self.injection_plane

    @property
    def steps(self) -> int:
        """Steps after which a run is cut short."""
        return self.depth if self.max_steps is None else self.max_steps

    def to_json(self) -> dict[str, Any]:
        """Plain data for a checkpoint or a manifest."""
        return {**asdict(self), "decoder": self.decoder.to_json()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "EnergyConfig":
        """Inverse of ``to_json``; unknown or missing keys are refused."""
        known = {field.name for field in fields(cls)}
        if unknown := set(plain) - known:
            raise ConfigError(f"energy-flow settings have unknown keys {sorted(unknown)}")
        try:
            return cls(**{**plain, "decoder": T5Config.from_json(plain["decoder"])})
        except (KeyError, TypeError) as error:
            raise ConfigError(f"energy-flow settings are incomplete or mistyped: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A named size of model, and how it is trained; vocabularies are known once the tokenizers are.

    >>> PRESETS["demo"].config("demo", vocabulary=300, decoder_vocabulary=300).depth
    """

    summary: str
    lattice: Mapping[str, Any]
    decoder: Mapping[str, Any]
    batch_size: int
    learning_rate: float
    steps: int
    wordpiece_vocabulary: int
    unigram_vocabulary: int

    def config(self, name: str, *, vocabulary: int, decoder_vocabulary: int, embedding_size: int = 768) -> EnergyConfig:
        """Settings for tokenizers with these numbers of entries."""
        decoder = T5Config(**{**self.decoder, "vocab_size": max(decoder_vocabulary, self.decoder.get("vocab_size", 0))})
        return EnergyConfig(
            preset=name,
            vocabulary=vocabulary,
            decoder=decoder,
            decoder_tokens=decoder_vocabulary,
            embedding_size=embedding_size,
            **self.lattice,
        )


# A head of its own: tied to the embedding its input is scaled by 1 / sqrt(d_model), and AdamW, which moves every entry by the same step,
# then needs more than twice as many steps to make the logits large.
_MINI_T5: dict[str, Any] = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_heads": 4,
    "num_layers": 2,
    "layer_norm_epsilon": 1e-4,
    "tie_word_embeddings": False,
}
# 32 128 entries whatever the corpus: the head keeps T5-small's dimensions, ids above the tokenizer's are never trained.
_T5_SMALL: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_heads": 8,
    "num_layers": 6,
    "layer_norm_epsilon": 1e-6,
}

PRESETS: Mapping[str, Preset] = {
    "demo": Preset(
        summary="8 x 8 x 6 lattice, mini T5; trains in minutes on two CPU cores",
        lattice={
            "width": 8,
            "height": 8,
            "depth": 6,
            "max_flows": 128,
            "carrier_hidden": 64,
            "carrier_layers": 1,
            "encoder_width": 64,
            "encoder_heads": 4,
            "encoder_feed_forward": 128,
            "encoder_positions": 32,
            "text_length": 32,
            "decode_length": 32,
            "memory_tokens": 8,
            "adapter_hidden": 128,
            "mapper_hidden": 128,
            "dropout": 0.0,
        },
        # Minutes of training on sentences without end: there is nothing to over-fit.
        decoder={**_MINI_T5, "dropout": 0.0},
        batch_size=32,
        learning_rate=2e-3,
        steps=2400,
        wordpiece_vocabulary=512,
        unigram_vocabulary=512,
    ),
    "debug": Preset(
        summary="20 x 20 x 10 lattice, mini T5; the default sizes of every part",
        lattice={
            "width": 20,
            "height": 20,
            "depth": 10,
            "max_flows": 1000,
            "carrier_hidden": 256,
            "carrier_layers": 2,
            "energy_threshold": 0.01,
            "text_length": 128,
            "decode_length": 128,
        },
        decoder=_MINI_T5,
        batch_size=8,
        learning_rate=1e-4,
        steps=2000,
        wordpiece_vocabulary=8000,
        unigram_vocabulary=8000,
    ),
    "experiment": Preset(
        summary="50 x 50 x 20 lattice, T5-small decoder",
        lattice={
            "width": 50,
            "height": 50,
            "depth": 20,
            "max_flows": 500,
            "carrier_hidden": 512,
            "carrier_layers": 2,
            "text_length": 128,
            "decode_length": 128,
        },
        decoder=_T5_SMALL,
        batch_size=16,
        learning_rate=1e-4,
        steps=20000,
        wordpiece_vocabulary=30522,
        unigram_vocabulary=32100,
    ),
    "optimized": Preset(
        summary="100 x 100 x 50 lattice, T5-small decoder, about 10 M parameters in the carrier",
        lattice={
            "width": 100,
            "height": 100,
            "depth": 50,
            "max_flows": 1000,
            "carrier_hidden": 1024,
            "carrier_layers": 3,
            "text_length": 128,
            "decode_length": 128,
        },
        decoder=_T5_SMALL,
        batch_size=32,
        learning_rate=1e-4,
        steps=50000,
        wordpiece_vocabulary=30522,
        unigram_vocabulary=32100,
    ),
}


def find_preset(name: str) -> Preset:
    """The preset of that name; a ``ConfigError`` lists the names there are."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"preset {name!r} does not exist; choose one of {', '.join(PRESETS)}") from None
