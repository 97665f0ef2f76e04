"""The training loop of any family: AdamW with a warm-up, mixed precision, and a state from which a stopped run goes on bit for bit."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from coreflow.models.errors import BundleError
from coreflow.models.family import Progress
from coreflow.models.storage import write_atomically

WARM_UP_STEPS = 100
# A row of an embedding has a gradient in every second batch or so. The usual 0.999 remembers the large gradients of the first
# steps for a thousand more, and holds such rows back.
BETAS = (0.9, 0.98)

Step = TypeVar("Step", bound=Progress)
Step_co = TypeVar("Step_co", bound=Progress, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Steps, batches and learning rate of a run.

    >>> Schedule(steps=2000, batch_size=32, learning_rate=1e-3, accumulate=1, seed=0, mixed_precision=False)
    """

    steps: int
    batch_size: int
    learning_rate: float
    accumulate: int  # batches per step of the optimizer
    seed: int
    mixed_precision: bool  # fp16 autocast where the device gains from it; never on a CPU


class Task(Protocol[Step_co]):
    """A family's part of training: a model, samples, and the losses of a batch.

    >>> task: Task[EnergyProgress] = EnergyTask(model, data, teacher, options, device)
    >>> loss, parts = task.losses(torch.arange(32))
    """

    @property
    def model(self) -> nn.Module:
        """The model, on its device and in training mode."""

    def __len__(self) -> int:
        """Number of samples."""

    def losses(self, rows: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss to minimise, and its parts by their fields in the record.

        rows (B,): numbers of the samples in the batch.
        """

    def record(self, **step: Any) -> Step_co:
        """The record of one step, from the fields of ``Progress`` and the mean of each part of the loss."""

    def restore(self, step: Mapping[str, Any]) -> Step_co:
        """The record that ``dataclasses.asdict`` made ``step`` of."""


class Loop(Generic[Step]):
    """Optimizer, gradient scaler and loss curve of one run.

    >>> loop = Loop(task, schedule, device)
    >>> for progress in loop.run():
    ...     if progress.step % 500 == 0:
    ...         loop.save(directory / "resume.safetensors", options)
    """

    def __init__(self, task: Task[Step], schedule: Schedule, device: torch.device) -> None:
        self._task, self._schedule, self._device = task, schedule, device
        # No weight decay: every sample is new, there is nothing to over-fit.
        self._optimizer = torch.optim.AdamW(task.model.parameters(), lr=schedule.learning_rate, betas=BETAS, weight_decay=0.0, fused=True)
        self._scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda" and schedule.mixed_precision)
        self.curve: list[Step] = []

    def run(self) -> Iterator[Step]:
        """The record of every step that is still to do."""
        for step in range(len(self.curve), self._schedule.steps):
            self.curve.append(self._advance(step))
            yield self.curve[-1]

    def _advance(self, step: int) -> Step:
        schedule, began = self._schedule, time.monotonic()
        for group in self._optimizer.param_groups:
            group["lr"] = schedule.learning_rate * rate_factor(step, schedule.steps)
        # Chance depends on the seed and the step alone, so that a resumed run goes on as it would have.
        torch.manual_seed(schedule.seed * 2**32 + step)
        shape = (schedule.accumulate, schedule.batch_size)
        draws = torch.from_numpy(np.random.default_rng((schedule.seed, step)).integers(len(self._task), size=shape))
        totals: dict[str, float] = {}
        for rows in draws:
            uses_fp16 = self._device.type != "cpu" and schedule.mixed_precision
            with torch.autocast(self._device.type, dtype=torch.float16, enabled=uses_fp16):
                loss, parts = self._task.losses(rows)
                loss = loss / schedule.accumulate
            self._scaler.scale(loss).backward()
            totals = {name: totals.get(name, 0.0) + part.item() for name, part in parts.items()}
        self._scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(self._task.model.parameters(), 1.0)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return self._task.record(
            step=step + 1,
            steps=schedule.steps,
            step_ms=(time.monotonic() - began) * 1e3,
            memory_mb=torch.cuda.max_memory_allocated() / 2**20 if self._device.type == "cuda" else 0.0,
            **{name: total / schedule.accumulate for name, total in totals.items()},
        )

    def save(self, path: Path, options: Mapping[str, Any]) -> None:
        """All that ``restore`` needs in one file; ``options`` are plain data."""
        model = self._task.model
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            tensors |= {f"optimizer.{name}.{moment}": value for moment, value in self._optimizer.state[parameter].items()}
        record = {"options": options, "scaler": self._scaler.state_dict(), "curve": [asdict(step) for step in self.curve]}
        metadata = {name: json.dumps(value) for name, value in record.items()}
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata))

    def restore(self, path: Path) -> None:
        """Fill model, optimizer, scaler and curve from what ``save`` wrote; ``BundleError`` when that cannot be."""
        model = self._task.model
        try:
            with safe_open(path, framework="pt") as file:
                record = _record(file.metadata())
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            model.load_state_dict({name: tensors.pop(f"model.{name}") for name in model.state_dict()})
            for name, parameter in model.named_parameters():
                prefix = f"optimizer.{name}."
                moments = {key.removeprefix(prefix): key for key in list(tensors) if key.startswith(prefix)}
                self._optimizer.state[parameter] = {moment: tensors.pop(key).to(parameter.device) for moment, key in moments.items()}
            self._scaler.load_state_dict(record["scaler"])
            self.curve = [self._task.restore(step) for step in record["curve"]]
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise BundleError(f"{path} is not the state of an interrupted run: {error}") from error


def saved_options(path: Path) -> dict[str, Any]:
    """The options that ``Loop.save`` recorded; ``BundleError`` when no run was interrupted there."""
    if not path.exists():
        raise BundleError(f"{path} is missing: no run was interrupted in {path.parent}; train without --resume")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(_record(file.metadata())["options"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} is not the state of an interrupted run: {error}") from error


def rate_factor(step: int, steps: int) -> float:
    """Share of the learning rate in this step: linear warm-up, then linear decay to 0. It depends on the step alone."""
    return min(1.0, (step + 1) / min(WARM_UP_STEPS, steps)) * (1 - step / steps)


def _record(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    return {name: json.loads(value) for name, value in (metadata or {}).items()}
