"""States: tensors that outlive a prediction."""

from dataclasses import dataclass

from torch import Tensor

from coreflow.runtime.lift.registry import lowering


@dataclass(slots=True)
class StateBuffer:
    """One state. A write replaces the tensor, so what was read before stays as it was.

    >>> cache = StateBuffer(torch.zeros(2))
    >>> before = read_state(cache)
    >>> _ = write_state(cache, torch.ones(2))
    >>> before.tolist(), cache.tensor.tolist()
    ([0.0, 0.0], [1.0, 1.0])
    """

    tensor: Tensor


@lowering("read_state")
def read_state(input: StateBuffer) -> Tensor:
    """The tensor that the state holds. Source: MIL iOS18 states.read_state."""
    return input.tensor


@lowering("write_state")
def write_state(input: StateBuffer, data: Tensor) -> tuple[()]:
    """Replaces the tensor that the state holds; gives nothing. Source: the spec's form of coreml_update_state."""
    input.tensor = data
    return ()


@lowering("coreml_update_state")
def coreml_update_state(state: StateBuffer, value: Tensor) -> Tensor:
    """Replaces the tensor that the state holds and gives it on. Source: coremltools' dialect."""
    state.tensor = value
    return value
