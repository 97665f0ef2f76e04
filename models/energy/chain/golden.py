"""Golden samples of an energy-flow bundle: torch's outputs for a few sentences, stage by stage.

companions/<digest>/
  golden/sentences.json       held-out sentences and the tokens that torch gives for them
  golden/STAGE.safetensors    inputs and outputs of every stage on the way (``coreflow.models.golden``)
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coreflow.models.arrays import Arrays
from coreflow.models.data import grammar
from coreflow.models.energy.decoding import DecodingOptions, decode
from coreflow.models.energy.stages import energy_stages
from coreflow.models.energy.training.checkpoint import Checkpoint
from coreflow.models.energy.wiring import Wiring, torch_predict
from coreflow.models.errors import BundleError
from coreflow.models.golden import GOLDEN, write_samples
from coreflow.models.stage import Stage

SENTENCES = "sentences.json"
GOLDEN_SENTENCES = 8
KEPT_STEPS = 3  # of the decoder's many steps, every third is kept


def write_golden(folder: Path, checkpoint: Checkpoint) -> None:
    """Sentences and stage samples below ``folder``."""
    golden = folder / GOLDEN
    golden.mkdir()
    sentences, calls = golden_samples(checkpoint, checkpoint.held_out[:GOLDEN_SENTENCES] or grammar.sentences(0, GOLDEN_SENTENCES))
    (golden / SENTENCES).write_text(json.dumps(sentences, indent=1) + "\n", encoding="utf-8")
    for stage, samples in calls.items():
        write_samples(folder, stage, samples)


def read_sentences(companions: Path) -> list[str]:
    """The golden sentences of a bundle; ``BundleError`` when they cannot be read."""
    path = companions / GOLDEN / SENTENCES
    try:
        return [str(sentence["text"]) for sentence in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} does not hold golden sentences: {error}") from error


def golden_samples(checkpoint: Checkpoint, texts: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, list[tuple[Arrays, Arrays]]]]:
    """Torch's text, tokens and decoded text for each of ``texts``; and inputs and outputs of every call of a stage.

    Inputs are rounded to fp16 before torch sees them, as a package would see them.
    """
    model, config = checkpoint.model, checkpoint.model.config
    stages = {stage.name: stage for stage in energy_stages(model)}
    execute = torch_predict(stages)
    calls: dict[str, list[tuple[Arrays, Arrays]]] = {name: [] for name in stages}

    def recorded(name: str, inputs: Arrays) -> Arrays:
        rounded = round_inputs(stages[name], inputs)
        outputs = execute(name, {key: array.astype(np.float32) if array.dtype.kind == "f" else array for key, array in rounded.items()})
        calls[name].append((rounded, outputs))
        return outputs

    wiring = Wiring(config, recorded)
    sentences = []
    for text in texts:
        encoded = checkpoint.wordpiece.encode(text, config.text_length)
        carried = wiring.carry(wiring.encode(encoded.ids[None], encoded.mask[None].astype(np.float32)))
        wiring.surface_to_embedding(carried.surface)
        decoded = decode(
            *wiring.decoder(carried.surface),
            DecodingOptions(max_tokens=config.decode_length),
            start_id=config.decoder.pad_id,
            eos_id=config.decoder.eos_id,
        )
        sentences.append({"text": text, "tokens": list(decoded.tokens), "decoded": checkpoint.unigram.decode(decoded.tokens)})
    for stage in stages.values():
        if not calls[stage.name]:  # no sentence passes it: embeddings enter there
            for seed in range(len(texts)):
                recorded(stage.name, stage.inputs_for(seed))
    calls["decoder_step"] = calls["decoder_step"][::KEPT_STEPS]
    return sentences, calls


def round_inputs(stage: Stage, inputs: Arrays) -> Arrays:
    """``inputs`` in the dtypes that the stage's package declares."""
    return {name: inputs[name].astype(spec.dtype) for name, spec in stage.inputs.items()}
