"""Losses and accuracies of training."""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # target of a place that holds padding


def text_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy in nats per token: logits (B, T, V), targets (B, T) with ``IGNORED`` where nothing is asked."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def energy_loss(output: Tensor, target: Tensor) -> Tensor:
    """Squared error over the energy of the target, plus 1 - cosine; both (B, E), mean over B. Zero when they are equal."""
    error = (output - target).square().sum(1) / target.square().sum(1)
    return (error + 1 - F.cosine_similarity(output, target)).mean()


def token_accuracy(predicted: Tensor, targets: Tensor) -> tuple[float, float]:
    """Share of correct tokens, and of rows that are correct in every token; both (B, T), ``IGNORED`` places left out."""
    asked = targets != IGNORED
    correct = (predicted == targets) | ~asked
    return ((correct & asked).sum() / asked.sum()).item(), correct.all(1).to(torch.float32).mean().item()
