"""The wired stages of an energy-flow bundle as validation runs them: sentences, embeddings and surfaces.

The lattice takes the hard decisions, so that other arithmetic starts its flows from the reference's cells. The decoder is fed with the
reference's own tokens, so that one flip does not hide the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coreflow.models.arrays import Array, Arrays
from coreflow.models.data.tokenizers import TextTokenizer
from coreflow.models.energy.config import EnergyConfig
from coreflow.models.energy.wiring import Carried, Wiring
from coreflow.models.family import ChainOutput, Decider, Passage, Predict, Trial, TrialSample
from coreflow.models.stage import Stage

LOGITS = "decoder.logits"
OUTPUTS = (
    ChainOutput(name="encoder.surface", stages=("encoder",), decided=False),
    ChainOutput(name="mapper_in.surface", stages=("mapper_in",), decided=False),
    ChainOutput(name="lattice.surface", stages=("lattice_step",)),
    ChainOutput(name="mapper_out.embedding", stages=("mapper_out",)),
    ChainOutput(name=LOGITS, stages=("decoder_memory", "decoder_step")),
)
LATTICE = Decider(stage="lattice_step", fields=("alive", "position"))


@dataclass(frozen=True, kw_only=True, eq=False)
class EnergyPassage(Passage):
    """A passage, and how the lattice carried its surface.

    >>> passage = sample.run(predict, np.float32)
    >>> passage.outputs["lattice.surface"], passage.carried.statistics.steps
    """

    carried: Carried


@dataclass(frozen=True, kw_only=True, eq=False)
class Sentence:
    """A text as the encoder reads it, (1, L) ids and mask: through encoder, lattice and decoder.

    >>> sample = Sentence(config=config, label="'a b'", text="a b", ids=encoded.ids[None], mask=encoded.mask[None])
    >>> sample.run(predict, np.float32).outputs
    """

    config: EnergyConfig
    label: str
    text: str
    ids: Array
    mask: Array
    seed: int | None = None

    def run(self, predict: Predict, dtype: type, reference: EnergyPassage | None = None) -> EnergyPassage:
        """Logits (T, V) along the reference's tokens, or along the chain's own likeliest ones."""
        wiring = Wiring(self.config, predict)
        entering = wiring.encode(self.ids, self.mask.astype(dtype))
        carried = wiring.carry(entering, None if reference is None else reference.carried.cells)
        logits, tokens = _decode(wiring, carried.surface, None if reference is None else reference.tokens)
        outputs = {"encoder.surface": entering, "lattice.surface": carried.surface, LOGITS: logits}
        return EnergyPassage(outputs=outputs, steps=_steps(carried), tokens=tokens, carried=carried)

    def tokens(self, predict: Predict, passage: EnergyPassage) -> tuple[int, ...]:
        """The chain's own likeliest tokens for the surface of ``passage``."""
        return _decode(Wiring(self.config, predict), passage.carried.surface, None)[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedding:
    """An embedding (1, E) through both mappers and the lattice.

    >>> Embedding(config=config, seed=0, embedding=embedding).run(predict, np.float32).outputs["mapper_out.embedding"]
    """

    config: EnergyConfig
    seed: int
    embedding: Array
    text: str = ""

    @property
    def label(self) -> str:
        """Name in a report."""
        return f"embedding {self.seed}"

    def run(self, predict: Predict, dtype: type, reference: EnergyPassage | None = None) -> EnergyPassage:
        """The surfaces on both sides of the lattice, and the embedding that comes back."""
        wiring = Wiring(self.config, predict)
        entering = wiring.embedding_to_surface(self.embedding.astype(dtype))
        carried = wiring.carry(entering, None if reference is None else reference.carried.cells)
        leaving = wiring.surface_to_embedding(carried.surface)
        outputs = {"mapper_in.surface": entering, "lattice.surface": carried.surface, "mapper_out.embedding": leaving}
        return EnergyPassage(outputs=outputs, steps=_steps(carried), carried=carried)

    def tokens(self, predict: Predict, passage: EnergyPassage) -> tuple[int, ...]:
        """No tokens: an embedding comes back as an embedding."""
        return ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """A surface (1, S) through the lattice.

    >>> Surface(config=config, seed=0, surface=surface).run(predict, np.float32).outputs["lattice.surface"]
    """

    config: EnergyConfig
    seed: int
    surface: Array
    text: str = ""

    @property
    def label(self) -> str:
        """Name in a report."""
        return f"surface {self.seed}"

    def run(self, predict: Predict, dtype: type, reference: EnergyPassage | None = None) -> EnergyPassage:
        """The surface that leaves the lattice."""
        wiring = Wiring(self.config, predict)
        carried = wiring.carry(self.surface.astype(dtype), None if reference is None else reference.carried.cells)
        return EnergyPassage(outputs={"lattice.surface": carried.surface}, steps=_steps(carried), carried=carried)

    def tokens(self, predict: Predict, passage: EnergyPassage) -> tuple[int, ...]:
        """No tokens: no decoder is reached."""
        return ()


def energy_trial(
    config: EnergyConfig,
    tokenizer: TextTokenizer,
    stages: Mapping[str, Stage],
    sentences: Sequence[str],
    seeds: range,
    texts: Sequence[tuple[str, Arrays]],
) -> Trial:
    """Golden ``sentences``, then ``texts`` as (label, inputs of the encoder), then an embedding and a surface per seed."""
    encoded = [tokenizer.encode(sentence, config.text_length) for sentence in sentences]
    golden: list[tuple[str, Arrays]] = [
        (text, {"ids": tokens.ids[None], "mask": tokens.mask[None]}) for text, tokens in zip(sentences, encoded, strict=True)
    ]
    samples: list[TrialSample] = [
        Sentence(config=config, label=f"sentence {number}", text=text, ids=inputs["ids"], mask=inputs["mask"])
        for number, (text, inputs) in enumerate([*golden, *texts])
    ]
    for seed in seeds:
        samples.append(Embedding(config=config, seed=seed, embedding=stages["mapper_in"].inputs_for(seed)["embedding"]))
        samples.append(Surface(config=config, seed=seed, surface=stages["mapper_out"].inputs_for(seed)["surface"]))
    return Trial(outputs=OUTPUTS, samples=samples, decider=LATTICE, logits=LOGITS)


def _steps(carried: Carried) -> tuple[Arrays, ...]:
    return tuple({"last": np.zeros((1, 1, 1, 1)), **table} for table in carried.tables)


def _decode(wiring: Wiring, surface: Array, tokens: Sequence[int] | None) -> tuple[Array, tuple[int, ...]]:
    """Logits (T, V) and the likeliest token of each row, up to the end token or the end of ``tokens``."""
    config = wiring.config
    step, state = wiring.decoder(surface)
    token, rows, chosen = config.decoder.pad_id, [], []
    for position in range(config.decode_length if tokens is None else len(tokens)):
        logits, state = step(token, position, dict(state))
        rows.append(logits)
        chosen.append(int(np.argmax(logits)))
        token = chosen[-1] if tokens is None else tokens[position]
        if tokens is None and token == config.decoder.eos_id:
            break
    return np.stack(rows), tuple(chosen)
