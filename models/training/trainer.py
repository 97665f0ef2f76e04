"""Trains an energy-flow model on sentence pairs: text through the lattice and back, and embeddings likewise."""

import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from coreflow.models.data import grammar
from coreflow.models.data.corpus import Pair, read_corpus
from coreflow.models.data.teacher import Teacher, load_teacher
from coreflow.models.data.tokenizers import TextTokenizer, train_unigram, train_wordpiece
from coreflow.models.energy.config import find_preset
from coreflow.models.energy.model import EnergyFlow
from coreflow.models.errors import ConfigError, InputError
from coreflow.models.training.checkpoint import (
    RESUME,
    TRAINING,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    write_json,
)
from coreflow.models.training.losses import IGNORED, energy_loss, text_loss, token_accuracy

HELD_OUT_SHARE = 0.05        # of a user's corpus
HELD_OUT_SENTENCES = 500     # of the grammar
TOKENIZER_SENTENCES = 20_000
EMBEDDING_SHARE = 8          # one embedding for so many texts in a batch: the easier task of the two


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """What decides the result of a run, beside the corpus."""

    preset: str = "demo"
    corpus: Path | None = None             # None: the built-in grammar
    teacher: Path | None = None            # None: hashed n-grams
    t5: Path | None = None                 # a Hugging Face T5 directory whose decoder to start from
    device: Literal["auto", "cpu", "mps", "cuda"] = "auto"
    steps: int | None = None               # None: the preset's
    batch_size: int | None = None
    learning_rate: float | None = None
    accumulate: int = 1                    # batches per step of the optimizer
    mixed_precision: bool = True           # bf16 or fp16 autocast where the device gains from it; never on a CPU
    sentences: int = 60_000                # drawn from the grammar
    text_weight: float = 1.0
    energy_weight: float = 0.2
    save_every: int = 500                  # steps between checkpoints
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "sentences", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}; at least 1 is needed")
        if self.device not in ("auto", "cpu", "mps", "cuda"):
            raise ConfigError(f"device {self.device!r}; choose auto, cpu, mps or cuda")

    def to_json(self) -> dict[str, Any]:
        """Plain data for the training record."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step of the optimizer."""

    step: int
    steps: int
    text_loss: float         # nats per token
    energy_loss: float
    step_ms: float
    memory_mb: float         # peak on the device; 0 on a CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The end of a run."""

    directory: Path
    parameters: int
    seconds: float
    device: str
    token_accuracy: float        # on held-out sentences, greedy, through encoder, lattice and decoder
    sentence_accuracy: float
    embedding_cosine: float      # held-out embeddings against themselves after the lattice
    curve: tuple[Progress, ...] = field(repr=False)


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA, else MPS, else the CPU; a device that is not there is a ``ConfigError``."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(each for each, available in there.items() if available)
    if not there[name]:
        raise ConfigError(f"device {name} is not available here; there is {', '.join(each for each, yes in there.items() if yes)}")
    return torch.device(name)


class PairTensors:
    """Pairs as padded arrays: encoder ids and mask of the source, decoder tokens of the target."""

    def __init__(self, pairs: Sequence[Pair], wordpiece: TextTokenizer, unigram: TextTokenizer, text_length: int, decode_length: int) -> None:
        self.sources = [pair.source for pair in pairs]
        encoded = [wordpiece.encode(pair.source, text_length) for pair in pairs]
        self.ids = torch.from_numpy(np.stack([each.ids for each in encoded]))
        self.mask = torch.from_numpy(np.stack([each.mask for each in encoded])).float()
        written = [unigram.encode(pair.target, decode_length) for pair in pairs]
        tokens = torch.from_numpy(np.stack([each.ids for each in written])).long()
        there = torch.from_numpy(np.stack([each.mask for each in written])) > 0
        self.targets = tokens.masked_fill(~there, IGNORED)
        # What the decoder has read before each target: T5 starts from the padding token.
        self.shifted = torch.cat([torch.full_like(tokens[:, :1], unigram.pad_id), tokens[:, :-1]], 1)

    def __len__(self) -> int:
        return len(self.sources)

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """ids, mask, shifted, targets of these rows, cut to the longest of them: padding costs time and changes nothing."""
        length = int(self.mask[rows].sum(1).max())
        written = int((self.targets[rows] != IGNORED).sum(1).max())
        parts = self.ids[rows, :length], self.mask[rows, :length], self.shifted[rows, :written], self.targets[rows, :written]
        return parts[0].to(device), parts[1].to(device), parts[2].to(device), parts[3].to(device)


def load_pairs(options: TrainingOptions) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs, from the corpus or the grammar."""
    if options.corpus is None:
        train, held_out = grammar.split(options.seed, options.sentences, HELD_OUT_SENTENCES)
        return [Pair(each, each) for each in train], [Pair(each, each) for each in held_out]
    pairs = read_corpus(options.corpus)
    if len(pairs) < 2:
        raise InputError(f"{options.corpus} has one usable line; at least 2 are needed, one of them to hold out")
    order = np.random.default_rng(options.seed).permutation(len(pairs))
    count = max(1, min(HELD_OUT_SENTENCES, round(len(pairs) * HELD_OUT_SHARE)))
    return [pairs[row] for row in order[count:]], [pairs[row] for row in order[:count]]


def train(options: TrainingOptions, directory: Path, resume: bool = False) -> Iterator[Progress | Trained]:
    """Train and save to ``directory``; yields a ``Progress`` per step and a ``Trained`` at the end.

    With ``resume``, goes on from the last checkpoint of the same options in ``directory``.
    """
    preset = find_preset(options.preset)
    device = choose_device(options.device)
    steps = options.steps or preset.steps
    rate = options.learning_rate or preset.learning_rate
    batch_size = options.batch_size or preset.batch_size
    torch.manual_seed(options.seed)
    pairs, held_out = load_pairs(options)
    teacher = load_teacher(options.teacher)
    if resume:
        checkpoint = load_checkpoint(directory)
        model, wordpiece, unigram = checkpoint.model, checkpoint.wordpiece, checkpoint.unigram
    else:
        texts = [text for pair in pairs[:TOKENIZER_SENTENCES] for text in {pair.source, pair.target}]
        wordpiece = train_wordpiece(texts, preset.wordpiece_vocabulary)
        unigram = train_unigram(texts, preset.unigram_vocabulary)
        config = preset.config(
            options.preset, vocabulary=wordpiece.vocab_size, decoder_vocabulary=unigram.vocab_size, embedding_size=teacher.size
        )
        model = EnergyFlow(config, options.t5)
        checkpoint = Checkpoint(model=model, wordpiece=wordpiece, unigram=unigram, held_out=tuple(pair.source for pair in held_out))
    config = model.config
    data = PairTensors(pairs, wordpiece, unigram, config.text_length, config.decode_length)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda" and options.mixed_precision)
    curve: list[Progress] = []
    first = _restore(directory, model, optimizer, schedule, curve) if resume else 0
    order = np.random.default_rng((options.seed, first))
    started = time.monotonic()
    for step in range(first, steps):
        began = time.monotonic()
        text_total = energy_total = 0.0
        for _ in range(options.accumulate):
            rows = torch.from_numpy(order.integers(len(data), size=batch_size))
            with torch.autocast(device.type, dtype=torch.float16, enabled=device.type != "cpu" and options.mixed_precision):
                text, energy = _losses(model, data, rows, teacher, device)
                loss = (options.text_weight * text + options.energy_weight * energy) / options.accumulate
            scaler.scale(loss).backward()
            text_total, energy_total = text_total + text.item(), energy_total + energy.item()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        progress = Progress(
            step=step + 1, steps=steps, text_loss=text_total / options.accumulate, energy_loss=energy_total / options.accumulate,
            step_ms=(time.monotonic() - began) * 1e3, memory_mb=torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else 0.0,
        )
        curve.append(progress)
        yield progress
        if (step + 1) % options.save_every == 0 and step + 1 < steps:
            _save_state(directory, checkpoint, optimizer, curve)
    model.eval()
    seconds = time.monotonic() - started
    held = PairTensors(held_out, wordpiece, unigram, config.text_length, config.decode_length)
    right, whole = evaluate(model, held, device)
    cosine = _embedding_cosine(model, teacher, held.sources, device)
    model.cpu()
    trained = Trained(
        directory=directory, parameters=sum(each.numel() for each in model.parameters()), seconds=seconds, device=device.type,
        token_accuracy=right, sentence_accuracy=whole, embedding_cosine=cosine, curve=tuple(curve),
    )
    save_checkpoint(directory, checkpoint)
    write_json(directory / TRAINING, _record(options, trained))
    (directory / RESUME).unlink(missing_ok=True)
    yield trained


def _losses(model: EnergyFlow, data: PairTensors, rows: Tensor, teacher: Teacher, device: torch.device) -> tuple[Tensor, Tensor]:
    """Text and energy loss of one batch; both kinds of surface share one pass through the lattice."""
    ids, mask, shifted, targets = data.batch(rows, device)
    few = rows[: max(1, len(rows) // EMBEDDING_SHARE)]
    embeddings = torch.from_numpy(teacher.embed([data.sources[row] for row in few.tolist()])).to(device)
    surfaces = torch.cat([model.encoder(ids, mask), model.mapper_in(embeddings)])
    carried = model.lattice(surfaces)
    text = text_loss(model.decoder(carried[: len(rows)], shifted).float(), targets)
    return text, energy_loss(model.mapper_out(carried[len(rows) :]).float(), embeddings)


@torch.inference_mode()
def reproduce(model: EnergyFlow, ids: Tensor, mask: Tensor, length: int) -> Tensor:
    """Greedy tokens (B, length) for encoder ids and mask (B, L), through encoder, lattice and decoder."""
    surface = model.lattice(model.encoder(ids, mask))
    tokens = torch.full((len(ids), 1), model.config.decoder.pad_id, device=ids.device)
    memory = model.decoder.memory(surface)
    for _ in range(length):
        logits = model.decoder.t5(tokens, memory)
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
    return tokens[:, 1:]


def evaluate(model: EnergyFlow, data: PairTensors, device: torch.device) -> tuple[float, float]:
    """Token and whole-sentence accuracy of greedy reproduction."""
    rows = torch.arange(len(data))
    ids, mask, _, targets = data.batch(rows, device)
    predicted = torch.cat([reproduce(model, ids[at], mask[at], targets.shape[1]) for at in rows.split(100)])
    return token_accuracy(predicted, targets)


@torch.inference_mode()
def _embedding_cosine(model: EnergyFlow, teacher: Teacher, texts: Sequence[str], device: torch.device) -> float:
    embeddings = torch.from_numpy(teacher.embed(texts[:200])).to(device)
    return torch.cosine_similarity(model.carry_embedding(embeddings), embeddings).mean().item()


def _record(options: TrainingOptions, trained: Trained) -> dict[str, Any]:
    result = {name: getattr(trained, name) for name in ("parameters", "seconds", "device", "token_accuracy", "sentence_accuracy", "embedding_cosine")}
    return {
        "options": options.to_json(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "result": result,
        "curve": [[each.step, each.text_loss, each.energy_loss, round(each.step_ms, 2)] for each in trained.curve],
    }


def _save_state(directory: Path, checkpoint: Checkpoint, optimizer: torch.optim.Optimizer, curve: Sequence[Progress]) -> None:
    """Weights, then the optimizer's moments and the curve, from which ``_restore`` goes on."""
    raise NotImplementedError


def _restore(directory: Path, model: EnergyFlow, optimizer: torch.optim.Optimizer, schedule: Any, curve: list[Progress]) -> int:
    raise NotImplementedError
