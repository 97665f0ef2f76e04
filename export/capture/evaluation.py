"""A module in eval mode, as a trace can follow it, and its inputs as tensors."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coreflow.models.arrays import Arrays


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Eval mode, no gradients, nothing compiled, no fused attention fast path (a trace cannot follow it).

    All is put back afterwards, buffers as well. Gives copies of the buffers, as they were.
    """
    put_back = uncompile(module)
    modes = {submodule: submodule.training for submodule in module.modules()}
    buffers = [(name, buffer, buffer.clone()) for name, buffer in module.named_buffers()]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    module.eval()
    try:
        with torch.no_grad():
            yield {name: copied for name, _, copied in buffers}
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for submodule, training in modes.items():
            submodule.training = training
        for name, buffer, copied in buffers:
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._buffers[leaf] = buffer
            if not torch.equal(buffer, copied):
                buffer.copy_(copied)
        put_back()


def uncompile(module: nn.Module) -> Callable[[], None]:
    """Put the parts that ``torch.compile`` was given in the place of those that it made, of which nothing could be seen, and which a trace
    refuses; gives a function that puts these back.
    """
    changes: list[tuple[dict[str, Any], str, Any]] = []
    for part in module.modules():
        parts = part._modules.items()
        changes += [(part._modules, name, child) for name, child in parts if isinstance(getattr(child, "_orig_mod", None), nn.Module)]
        if vars(part).get("_compiled_call_impl") is not None:  # by ``module.compile()``
            changes.append((vars(part), "_compiled_call_impl", part._compiled_call_impl))
    for place, name, value in changes:
        place[name] = value._orig_mod if isinstance(value, nn.Module) else None

    def put_back() -> None:
        for place, name, value in changes:
            place[name] = value

    return put_back


def clear_states(module: object, names: Sequence[str]) -> None:
    """Zeros in the buffers of these names, as at the start of every use of a program that keeps them."""
    if isinstance(module, nn.Module):
        for name in names:
            module.get_buffer(name).zero_()


def read_states(module: object, names: Sequence[str]) -> list[Tensor]:
    """Copies of the buffers of these names."""
    return [module.get_buffer(name).clone() for name in names] if isinstance(module, nn.Module) else []


def tensors(arrays: Arrays, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Arrays as torch tensors: floats in ``dtype``, integers as they are (int32 indexes an embedding as well as int64)."""
    return {
        name: torch.from_numpy(np.ascontiguousarray(array)).to(dtype if array.dtype.kind == "f" else torch.int32)
        for name, array in arrays.items()
    }
