"""Trains an energy-flow model on sentence pairs: text through the lattice and back, and embeddings likewise."""

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coreflow.models.data.corpus import Pair
from coreflow.models.data.teacher import Teacher, load_teacher
from coreflow.models.data.tokenizers import train_unigram, train_wordpiece
from coreflow.models.energy.config import Preset, find_preset
from coreflow.models.energy.model import EnergyFlow
from coreflow.models.energy.training.checkpoint import CURVE, RESUME, TRAINING, Checkpoint, load_checkpoint, save_checkpoint
from coreflow.models.energy.training.options import TrainingOptions
from coreflow.models.energy.training.pairs import PairTensors, load_pairs
from coreflow.models.family import Progress, Trained
from coreflow.models.storage import write_json
from coreflow.models.training.device import choose_device
from coreflow.models.training.loop import Loop, Schedule, saved_options
from coreflow.models.training.losses import energy_loss, text_loss, token_accuracy

TOKENIZER_SENTENCES = 20_000
EMBEDDING_SHARE = 8  # one embedding for so many texts in a batch: the easier task of the two
EVALUATION_BATCH = 100
EVALUATED_EMBEDDINGS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyProgress(Progress):
    """One step of the optimizer, with its losses.

    >>> for event in train(options, directory):
    ...     if isinstance(event, EnergyProgress):
    ...         print(event.step, event.text_loss, event.energy_loss)
    """

    text_loss: float  # nats per token
    energy_loss: float

    @property
    def losses(self) -> Mapping[str, float]:
        """Text and energy loss."""
        return {"text": self.text_loss, "energy": self.energy_loss}


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyTrained(Trained):
    """The end of a run, with the accuracies on held-out sentences.

    >>> *_, trained = train(options, directory)
    >>> trained.token_accuracy, trained.embedding_cosine
    """

    parameters: int
    seconds: float
    device: str
    token_accuracy: float  # on held-out sentences, greedy, through encoder, lattice and decoder
    sentence_accuracy: float
    embedding_cosine: float  # held-out embeddings against themselves after the lattice
    curve: tuple[EnergyProgress, ...] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Everything but the curve."""
        return {name: value for name, value in asdict(self).items() if name != "curve"} | {"directory": str(self.directory)}

    def summary(self) -> str:
        """Three lines for people."""
        return (
            f"trained {self.parameters / 1e6:.2f} M parameters in {self.seconds:.0f} s on {self.device}: {self.directory}\n"
            f"held-out sentences: {self.token_accuracy:.1%} of tokens right, {self.sentence_accuracy:.1%} of sentences whole; "
            f"embeddings: cosine {self.embedding_cosine:.3f}\n"
            f"loss curve: {self.directory / CURVE}"
        )


class EnergyTask:
    """Texts and embeddings of a batch through one pass of the lattice; see ``training.loop.Task``.

    >>> loop = Loop(EnergyTask(model, data, teacher, options, device), schedule, device)
    >>> for progress in loop.run(): ...
    """

    def __init__(self, model: EnergyFlow, data: PairTensors, teacher: Teacher, options: TrainingOptions, device: torch.device) -> None:
        self.model = model
        self._data, self._teacher, self._options, self._device = data, teacher, options, device

    def __len__(self) -> int:
        return len(self._data)

    def losses(self, rows: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The weighted sum of text and energy loss over the pairs ``rows`` (B,), and the two."""
        ids, mask, shifted, targets = self._data.batch(rows, self._device)
        few = rows[: max(1, len(rows) // EMBEDDING_SHARE)]
        embeddings = torch.from_numpy(self._teacher.embed([self._data.sources[row] for row in few.tolist()])).to(self._device)
        surfaces = torch.cat([self.model.encoder(ids, mask), self.model.mapper_in(embeddings)])
        carried = self.model.lattice(surfaces)
        text = text_loss(self.model.decoder(carried[: len(rows)], shifted).float(), targets)
        energy = energy_loss(self.model.mapper_out(carried[len(rows) :]).float(), embeddings)
        total = self._options.text_weight * text + self._options.energy_weight * energy
        return total, {"text_loss": text, "energy_loss": energy}

    def record(self, **step: Any) -> EnergyProgress:
        """The record of one step."""
        return EnergyProgress(**step)

    def restore(self, step: Mapping[str, Any]) -> EnergyProgress:
        """The record of a step that was saved."""
        return EnergyProgress(**step)


def train(options: TrainingOptions, directory: Path, resume: bool = False) -> Iterator[EnergyProgress | EnergyTrained]:
    """Train and save to ``directory``; yields an ``EnergyProgress`` per step and an ``EnergyTrained`` at the end.

    With ``resume``, goes on from the last checkpoint of the same options in ``directory``.
    """
    preset = find_preset(options.preset)
    device = choose_device(options.device)
    torch.manual_seed(options.seed)
    pairs, held_out = load_pairs(options)
    teacher = load_teacher(options.teacher)
    checkpoint = load_checkpoint(directory) if resume else _begin(options, preset, pairs, held_out, teacher)
    model = checkpoint.model
    data = _tensors(pairs, checkpoint)
    model.to(device).train()
    loop = Loop(EnergyTask(model, data, teacher, options, device), _schedule(options, preset), device)
    if resume:
        options.refuse_others(saved_options(directory / RESUME), directory)
        loop.restore(directory / RESUME)
    started = time.monotonic()
    for progress in loop.run():
        if progress.step % options.save_every == 0 and progress.step < progress.steps:
            # A usable checkpoint first: a run killed between the two has the whole of an older state.
            save_checkpoint(directory, checkpoint)
            loop.save(directory / RESUME, options.to_json())
        yield progress
    model.eval()
    seconds = time.monotonic() - started
    unseen = _tensors(held_out, checkpoint)
    tokens, sentences = evaluate(model, unseen, device)
    cosine = _embedding_cosine(model, teacher, unseen.sources, device)
    model.cpu()
    trained = EnergyTrained(
        directory=directory,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=seconds,
        device=device.type,
        token_accuracy=tokens,
        sentence_accuracy=sentences,
        embedding_cosine=cosine,
        curve=tuple(loop.curve),
    )
    _save(checkpoint, options, trained)
    yield trained


def _begin(options: TrainingOptions, preset: Preset, pairs: Sequence[Pair], held_out: Sequence[Pair], teacher: Teacher) -> Checkpoint:
    """An untrained model, and the tokenizers that ``pairs`` give."""
    texts = [text for pair in pairs[:TOKENIZER_SENTENCES] for text in {pair.source, pair.target}]
    wordpiece = train_wordpiece(texts, preset.wordpiece_vocabulary)
    unigram = train_unigram(texts, preset.unigram_vocabulary)
    config = preset.config(
        options.preset, vocabulary=wordpiece.vocab_size, decoder_vocabulary=unigram.vocab_size, embedding_size=teacher.size
    )
    model = EnergyFlow(config, options.t5)
    return Checkpoint(model=model, wordpiece=wordpiece, unigram=unigram, held_out=tuple(pair.source for pair in held_out))


def _schedule(options: TrainingOptions, preset: Preset) -> Schedule:
    return Schedule(
        steps=options.steps or preset.steps,
        batch_size=options.batch_size or preset.batch_size,
        learning_rate=options.learning_rate or preset.learning_rate,
        accumulate=options.accumulate,
        seed=options.seed,
        mixed_precision=options.mixed_precision,
    )


def _tensors(pairs: Sequence[Pair], checkpoint: Checkpoint) -> PairTensors:
    config = checkpoint.model.config
    return PairTensors(pairs, checkpoint.wordpiece, checkpoint.unigram, config.text_length, config.decode_length)


@torch.inference_mode()
def reproduce(model: EnergyFlow, ids: Tensor, mask: Tensor, length: int) -> Tensor:
    """Greedy tokens (B, length) for encoder ids and mask (B, L), through encoder, lattice and decoder."""
    surface = model.lattice(model.encoder(ids, mask))
    tokens = torch.full((len(ids), 1), model.config.decoder.pad_id, device=ids.device)
    memory = model.decoder.memory(surface)
    for _ in range(length):
        logits = model.decoder.t5(tokens, memory)
        tokens = torch.cat([tokens, logits[:, -1:, : model.config.decoder_tokens].argmax(-1)], 1)
    return tokens[:, 1:]


def evaluate(model: EnergyFlow, data: PairTensors, device: torch.device) -> tuple[float, float]:
    """Token and whole-sentence accuracy of greedy reproduction."""
    rows = torch.arange(len(data))
    ids, mask, _, targets = data.batch(rows, device)
    predicted = torch.cat([reproduce(model, ids[batch], mask[batch], targets.shape[1]) for batch in rows.split(EVALUATION_BATCH)])
    return token_accuracy(predicted, targets)


@torch.inference_mode()
def _embedding_cosine(model: EnergyFlow, teacher: Teacher, texts: Sequence[str], device: torch.device) -> float:
    embeddings = torch.from_numpy(teacher.embed(texts[:EVALUATED_EMBEDDINGS])).to(device)
    return torch.cosine_similarity(model.carry_embedding(embeddings), embeddings).mean().item()


def _save(checkpoint: Checkpoint, options: TrainingOptions, trained: EnergyTrained) -> None:
    """Everything that a finished run leaves in its directory."""
    # matplotlib takes a second to load; only the end of a run needs it.
    from coreflow.models.training.plot import plot_curve

    directory, curve = trained.directory, trained.curve
    save_checkpoint(directory, checkpoint)
    write_json(directory / TRAINING, _record(options, trained))
    losses = {
        "text (nats per token)": [step.text_loss for step in curve],
        "energy (relative error + 1 - cosine)": [step.energy_loss for step in curve],
    }
    plot_curve([step.step for step in curve], losses, directory / CURVE)
    (directory / RESUME).unlink(missing_ok=True)


def _record(options: TrainingOptions, trained: EnergyTrained) -> dict[str, Any]:
    result = {
        name: getattr(trained, name)
        for name in ("parameters", "seconds", "device", "token_accuracy", "sentence_accuracy", "embedding_cosine")
    }
    return {
        "options": options.to_json(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "result": result,
        "curve": [[step.step, step.text_loss, step.energy_loss, round(step.step_ms, 2)] for step in trained.curve],
    }
