"""A trained energy-flow model -> a bundle: six packages, and beside them all that is needed to run and to judge them.

companions/<digest>/
  config.json                 EnergyConfig
  weights.safetensors         the torch reference
  wordpiece.json unigram.json
  golden/sentences.json       held-out sentences and the tokens that torch gives for them
  golden/STAGE.safetensors    inputs and outputs of every stage on the way, ``<sample>.in.<name>`` and ``<sample>.out.<name>``
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from coreflow.export.bundle import BundleDone, StageDone, export_bundle
from coreflow.export.recipe import Recipe, Target
from coreflow.models.arrays import Arrays
from coreflow.models.data import grammar
from coreflow.models.energy.decoding import DecodingOptions, decode
from coreflow.models.energy.model import EnergyFlow
from coreflow.models.energy.stages import Stage, energy_stages
from coreflow.models.energy.wiring import Wiring, torch_predict
from coreflow.models.storage import write_json
from coreflow.models.training.checkpoint import CONFIG, UNIGRAM, WEIGHTS, WORDPIECE, Checkpoint, load_checkpoint, save_tensors

KIND = "energy-flow"
GOLDEN = "golden"
GOLDEN_SENTENCES = 8


def energy_recipes(model: EnergyFlow, target: Target = "iOS17") -> tuple[Recipe, ...]:
    """A recipe per stage of ``model``."""
    return tuple(
        Recipe(
            name=stage.name,
            module=stage.module,
            inputs=stage.inputs,
            outputs=stage.outputs,
            description=stage.description,
            draw=stage.draw,
            target=target,
        )
        for stage in energy_stages(model)
    )


def export_run(run: Path, out: Path, *, target: Target = "iOS17", jobs: int | None = None) -> Iterator[StageDone | BundleDone]:
    """Export the run at ``run`` to the bundle ``out``; see ``export_bundle``."""
    checkpoint = load_checkpoint(run)
    return export_bundle(
        energy_recipes(checkpoint.model, target),
        out,
        kind=KIND,
        settings={"preset": checkpoint.model.config.preset},
        write_companions=lambda folder: write_companions(folder, checkpoint),
        jobs=jobs,
    )


def write_companions(folder: Path, checkpoint: Checkpoint) -> None:
    """Tokenizers, settings, reference weights and golden samples."""
    model = checkpoint.model
    write_json(folder / CONFIG, model.config.to_json())
    save_tensors(folder / WEIGHTS, model.state_dict())
    checkpoint.wordpiece.save(folder / WORDPIECE)
    checkpoint.unigram.save(folder / UNIGRAM)
    golden = folder / GOLDEN
    golden.mkdir()
    sentences, calls = golden_samples(checkpoint, checkpoint.held_out[:GOLDEN_SENTENCES] or grammar.sentences(0, GOLDEN_SENTENCES))
    (golden / "sentences.json").write_text(json.dumps(sentences, indent=1) + "\n", encoding="utf-8")
    for stage, samples in calls.items():
        tensors = {
            f"{number}.{side}.{name}": np.ascontiguousarray(array)
            for number, pair in enumerate(samples)
            for side, arrays in zip(("in", "out"), pair, strict=True)
            for name, array in arrays.items()
        }
        save_file(tensors, golden / f"{stage}.safetensors")


def golden_samples(checkpoint: Checkpoint, texts: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, list[tuple[Arrays, Arrays]]]]:
    """What torch makes of ``texts``: text, tokens and decoded text; and inputs and outputs of every call of a stage.

    Inputs are rounded to fp16 before torch sees them, as a package would see them. Of the decoder's steps every third is kept.
    """
    model, config = checkpoint.model, checkpoint.model.config
    stages = {stage.name: stage for stage in energy_stages(model)}
    execute = torch_predict(stages)
    calls: dict[str, list[tuple[Arrays, Arrays]]] = {name: [] for name in stages}

    def recorded(name: str, inputs: Arrays) -> Arrays:
        rounded = round_inputs(stages[name], inputs)
        outputs = execute(name, {each: array.astype(np.float32) if array.dtype.kind == "f" else array for each, array in rounded.items()})
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
                recorded(stage.name, stage.draw(seed))
    calls["decoder_step"] = calls["decoder_step"][::3]
    return sentences, calls


def round_inputs(stage: Stage, inputs: Arrays) -> Arrays:
    """``inputs`` in the dtypes that the stage's package declares."""
    return {name: inputs[name].astype(spec.dtype) for name, spec in stage.inputs.items()}
