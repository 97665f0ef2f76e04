"""What tests of several models share: a T5 decoder as a step function."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from coreflow.models.arrays import Array
from coreflow.models.t5.decoder import KeysValues, T5Decoder

Step = Callable[[int, int, KeysValues], tuple[Array, KeysValues]]


def make_steps(decoder: T5Decoder, memory: Tensor, length: int) -> tuple[Step, KeysValues]:
    """A step for ``decoding.decode`` over one memory (1, M, C), and its initial state."""
    with torch.inference_mode():
        cross, table = decoder.cross_keys_values(memory), decoder.bias_table(length)

    @torch.inference_mode()
    def step(token: int, position: int, own: KeysValues) -> tuple[Array, KeysValues]:
        slot = torch.eye(length)[position : position + 1]
        logits, updated = decoder.step(torch.tensor([[token]]), slot, own, cross, table)
        return logits[0].numpy(), updated

    return step, decoder.empty_cache(length)


@pytest.fixture(scope="session")
def steps_over() -> Any:
    return make_steps
