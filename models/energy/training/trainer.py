"""Trains an energy-flow model on sentence pairs: text through the lattice and back, and embeddings likewise."""

import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from coreflow.models.data import grammar
from coreflow.models.data.corpus import Pair, read_corpus
from coreflow.models.data.teacher import Teacher, load_teacher
from coreflow.models.data.tokenizers import TextTokenizer, train_unigram, train_wordpiece
from coreflow.models.energy.config import find_preset
from coreflow.models.energy.model import EnergyFlow
from coreflow.models.energy.training.checkpoint import CURVE, RESUME, TRAINING, Checkpoint, load_checkpoint, save_checkpoint
from coreflow.models.errors import BundleError, ConfigError, InputError
from coreflow.models.family import Progress, Trained
from coreflow.models.storage import write_atomically, write_json
from coreflow.models.training.losses import IGNORED, energy_loss, text_loss, token_accuracy

HELD_OUT_SHARE = 0.05  # of a user's corpus
HELD_OUT_SENTENCES = 500  # of the grammar
TOKENIZER_SENTENCES = 20_000
EMBEDDING_SHARE = 8  # one embedding for so many texts in a batch: the easier task of the two
WARM_UP_STEPS = 100
# A row of an embedding has a gradient in every second batch or so. The usual 0.999 remembers the large gradients of the first
# steps for a thousand more, and holds such rows back.
BETAS = (0.9, 0.98)
# Options that do not decide the result: a run may go on with others.
FREE_OPTIONS = ("save_every",)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """What decides the result of a run, beside the corpus."""

    preset: str = "demo"
    corpus: Path | None = None  # None: the built-in grammar
    teacher: Path | None = None  # None: hashed n-grams
    t5: Path | None = None  # a Hugging Face T5 directory whose decoder to start from
    device: Literal["auto", "cpu", "mps", "cuda"] = "auto"
    steps: int | None = None  # None: the preset's
    batch_size: int | None = None
    learning_rate: float | None = None
    accumulate: int = 1  # batches per step of the optimizer
    mixed_precision: bool = True  # fp16 autocast where the device gains from it; never on a CPU
    sentences: int = 60_000  # drawn from the grammar
    text_weight: float = 1.0
    energy_weight: float = 0.2
    save_every: int = 500  # steps between checkpoints
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
class EnergyProgress(Progress):
    """One step of the optimizer."""

    text_loss: float  # nats per token
    energy_loss: float

    @property
    def losses(self) -> Mapping[str, float]:
        """Text and energy loss."""
        return {"text": self.text_loss, "energy": self.energy_loss}


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyTrained(Trained):
    """The end of a run."""

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

    def __init__(
        self, pairs: Sequence[Pair], wordpiece: TextTokenizer, unigram: TextTokenizer, text_length: int, decode_length: int
    ) -> None:
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


def train(options: TrainingOptions, directory: Path, resume: bool = False) -> Iterator[EnergyProgress | EnergyTrained]:
    """Train and save to ``directory``; yields a ``EnergyProgress`` per step and an ``EnergyTrained`` at the end.

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
    # No weight decay: every sentence is new, there is nothing to over-fit.
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=BETAS, weight_decay=0.0, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda" and options.mixed_precision)
    curve = _restore(directory, options, model, optimizer, scaler) if resume else []
    started = time.monotonic()
    for step in range(len(curve), steps):
        began = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = rate * _rate_factor(step, steps)
        # Chance depends on the seed and the step alone, so that a resumed run goes on as it would have.
        torch.manual_seed(options.seed * 2**32 + step)
        draws = torch.from_numpy(np.random.default_rng((options.seed, step)).integers(len(data), size=(options.accumulate, batch_size)))
        text_total = energy_total = 0.0
        for rows in draws:
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
        progress = EnergyProgress(
            step=step + 1,
            steps=steps,
            text_loss=text_total / options.accumulate,
            energy_loss=energy_total / options.accumulate,
            step_ms=(time.monotonic() - began) * 1e3,
            memory_mb=torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else 0.0,
        )
        curve.append(progress)
        if (step + 1) % options.save_every == 0 and step + 1 < steps:
            _save_state(directory, options, checkpoint, optimizer, scaler, curve)
        yield progress
    model.eval()
    seconds = time.monotonic() - started
    held = PairTensors(held_out, wordpiece, unigram, config.text_length, config.decode_length)
    right, whole = evaluate(model, held, device)
    cosine = _embedding_cosine(model, teacher, held.sources, device)
    model.cpu()
    trained = EnergyTrained(
        directory=directory,
        parameters=sum(each.numel() for each in model.parameters()),
        seconds=seconds,
        device=device.type,
        token_accuracy=right,
        sentence_accuracy=whole,
        embedding_cosine=cosine,
        curve=tuple(curve),
    )
    save_checkpoint(directory, checkpoint)
    write_json(directory / TRAINING, _record(options, trained))
    # matplotlib takes a second to load; only the end of a run needs it.
    from coreflow.models.training.plot import plot_curve

    plot_curve(
        [progress.step for progress in curve],
        {
            "text (nats per token)": [progress.text_loss for progress in curve],
            "energy (relative error + 1 - cosine)": [progress.energy_loss for progress in curve],
        },
        directory / CURVE,
    )
    (directory / RESUME).unlink(missing_ok=True)
    yield trained


def _rate_factor(step: int, steps: int) -> float:
    """Share of the learning rate in this step: a linear rise, then a straight line to nothing. Nothing of it needs saving."""
    return min(1.0, (step + 1) / min(WARM_UP_STEPS, steps)) * (1 - step / steps)


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
        tokens = torch.cat([tokens, logits[:, -1:, : model.config.decoder_tokens].argmax(-1)], 1)
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


def _record(options: TrainingOptions, trained: EnergyTrained) -> dict[str, Any]:
    result = {
        name: getattr(trained, name)
        for name in ("parameters", "seconds", "device", "token_accuracy", "sentence_accuracy", "embedding_cosine")
    }
    return {
        "options": options.to_json(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "result": result,
        "curve": [[each.step, each.text_loss, each.energy_loss, round(each.step_ms, 2)] for each in trained.curve],
    }


def _save_state(
    directory: Path,
    options: TrainingOptions,
    checkpoint: Checkpoint,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    curve: Sequence[EnergyProgress],
) -> None:
    """A usable checkpoint, then all that ``_restore`` needs in one file: a run killed between the two has the whole of an older one."""
    model = checkpoint.model
    save_checkpoint(directory, checkpoint)
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        tensors |= {f"optimizer.{name}.{moment}": value for moment, value in optimizer.state[parameter].items()}
    record = {"options": options.to_json(), "scaler": scaler.state_dict(), "curve": [asdict(each) for each in curve]}
    metadata = {name: json.dumps(value) for name, value in record.items()}
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    write_atomically(directory / RESUME, lambda temporary: save_file(contiguous, temporary, metadata))


def _restore(
    directory: Path, options: TrainingOptions, model: EnergyFlow, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> list[EnergyProgress]:
    """Fill ``model``, ``optimizer`` and ``scaler`` with what ``_save_state`` wrote; the curve so far, whose length is the next step."""
    path = directory / RESUME
    if not path.exists():
        raise BundleError(f"{path} is missing: no run was interrupted in {directory}; train without --resume")
    try:
        with safe_open(path, framework="pt") as file:
            record = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _refuse_other_options(options, record["options"], directory)
        model.load_state_dict({name: tensors.pop(f"model.{name}") for name in model.state_dict()})
        for name, parameter in model.named_parameters():
            moments = {each.removeprefix(f"optimizer.{name}."): each for each in list(tensors) if each.startswith(f"optimizer.{name}.")}
            optimizer.state[parameter] = {moment: tensors.pop(each).to(parameter.device) for moment, each in moments.items()}
        scaler.load_state_dict(record["scaler"])
        return [EnergyProgress(**each) for each in record["curve"]]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BundleError(f"{path} is not the state of an interrupted run: {error}") from error


def _refuse_other_options(asked: TrainingOptions, saved: dict[str, Any], directory: Path) -> None:
    differences = [
        f"{name}={value!r}, not {saved.get(name)!r}"
        for name, value in asked.to_json().items()
        if name not in FREE_OPTIONS and value != saved.get(name)
    ]
    if differences:
        raise ConfigError(f"{directory} was begun with other options: {'; '.join(differences)}. Give the same, or another directory")
