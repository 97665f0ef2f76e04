"""What people hand over as a module, as an ``nn.Module``: compiled ones, methods of one, objects that hold some."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn


class Held(nn.Module):
    """An object that is called and holds modules, as a module of its own: theirs are its parts, under the names that the object gives them.

    >>> Held(pipeline)  # with pipeline.encoder and pipeline.head
    >>> Held(clip.get_image_features)  # a method of a module
    """

    def __init__(self, source: Callable[..., Any]) -> None:
        super().__init__()
        self._source = source
        for name, part in _parts(source):
            self.add_module(name, part)

    @property
    def signature(self) -> inspect.Signature:
        """That of the object, which ``forward`` hides."""
        return inspect.signature(self._source)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the object gives."""
        return self._source(*inputs, **named)


def as_module(value: object) -> nn.Module | None:
    """``value`` as a module: itself, the module that ``torch.compile`` was given, or a ``Held`` object; None where it is nothing of these.

    A function is none: the modules that it calls cannot be told, nor copied with it.
    """
    if isinstance(value, nn.Module):
        original = getattr(value, "_orig_mod", None)
        return as_module(original) if isinstance(original, nn.Module) else value
    if callable(value) and any(True for _ in _parts(value)):
        return Held(value)
    return None


def _parts(source: object) -> Iterator[tuple[str, nn.Module]]:
    """The modules that an object, or the object of a method, holds, by name; those in lists, tuples and mappings together."""
    owner = getattr(source, "__self__", None)
    if isinstance(owner, nn.Module):
        yield "module", owner
        return
    for name, value in getattr(source if owner is None else owner, "__dict__", {}).items():
        if isinstance(value, nn.Module):
            yield name, value
        elif isinstance(value, list | tuple) and value and all(isinstance(part, nn.Module) for part in value):
            yield name, nn.ModuleList(value)
        elif isinstance(value, Mapping) and value and all(isinstance(part, nn.Module) for part in value.values()):
            yield name, nn.ModuleDict(value)
