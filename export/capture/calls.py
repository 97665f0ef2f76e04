"""How a module is called: inputs by name where its ``forward`` has them, results by name where it names them."""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from coreflow.export.capture.modules import Held
from coreflow.models.errors import ConfigError

INSIDE = "module."  # before the names of parameters of a module in ``InOrder``
_BY_ORDER = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def call(module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str] = (), *, strict: bool = False) -> tuple[Tensor, ...]:
    """The ``outputs`` of ``module`` on ``inputs``; see ``arguments`` and ``pick``.

    >>> hidden, pooled = call(bert, {"input_ids": ids, "attention_mask": mask}, ("last_hidden_state", "pooler_output"))
    """
    ordered, named = arguments(module, inputs)
    return pick(module(*ordered, **named), outputs, strict=strict)


def arguments(module: nn.Module, inputs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``inputs`` as the positional and the keyword arguments of ``module.forward``.

    By name where every name is a parameter, or where there are more of them than ``forward`` takes in order and it has ``**kwargs``; in
    their order otherwise, and where both come to the same. ``ConfigError`` where an input would go to another parameter than that of its
    name.
    """
    try:
        parameters = (module.signature if isinstance(module, Held) else inspect.signature(module.forward)).parameters.values()
    except (TypeError, ValueError):  # a compiled function has none
        return tuple(inputs.values()), {}
    kinds = {parameter.kind for parameter in parameters}
    places = [parameter.name for parameter in parameters if parameter.kind in _BY_ORDER]
    if list(inputs) == places[: len(inputs)]:
        return tuple(inputs.values()), {}
    known = {parameter.name for parameter in parameters if parameter.kind in _BY_NAME}
    takes_any_name = inspect.Parameter.VAR_KEYWORD in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds
    if inputs.keys() <= known or (takes_any_name and len(inputs) > len(places)):
        return (), dict(inputs)
    if moved := [f"{name!r} to {place!r}" for name, place in zip(inputs, places, strict=False) if name in known and name != place]:
        unknown = ", ".join(repr(name) for name in inputs if name not in known)
        raise ConfigError(
            f"{type(module).__name__}.forward has no {unknown}, and in their order the inputs would go {', '.join(moved)}; "
            f"its parameters are {', '.join(parameter.name for parameter in parameters)}"
        )
    return tuple(inputs.values()), {}


def pick(result: object, outputs: Sequence[str] = (), *, strict: bool = False) -> tuple[Tensor, ...]:
    """The tensors that a module returned, as ``outputs`` names them; without names all of them, in order.

    A tensor, tuples and lists of tensors, at any depth, are taken in order; what else is among them is passed over. A mapping, a dataclass
    and a named tuple have names. Where none of ``outputs`` is a name, all is taken in order too; with ``strict``, of a named tuple only.
    ``ConfigError`` lists what there is where that does not do.
    """
    fields = fields_of(result)
    by_name = fields is not None and (set(outputs) & fields.keys() or (outputs and strict and not isinstance(result, tuple)))
    if fields is None or not by_name:
        return _in_order(result if fields is None else tuple(fields.values()), outputs, type(result).__name__, strict)
    if missing := [name for name in outputs if not isinstance(fields.get(name), Tensor)]:
        raise ConfigError(f"forward returns no tensor {', '.join(map(repr, missing))}; there is {_listed(fields)}")
    return tuple(fields[name] for name in outputs)


def fields_of(result: object) -> Mapping[str, Any] | None:
    """Names and values of a mapping, a dataclass or a named tuple; None for anything else."""
    if isinstance(result, Mapping):
        return result
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        return dict(zip(result._fields, result, strict=True))
    return None


class InOrder(nn.Module):
    """A module that takes its inputs in their order and returns its outputs as a tuple, which is all that a trace knows.

    >>> hidden, pooled = InOrder(bert, ("input_ids", "attention_mask"), ("last_hidden_state", "pooler_output"))(ids, mask)
    """

    def __init__(self, module: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self.training = module.training

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """(*inputs) -> (*outputs)."""
        return call(self.module, dict(zip(self._inputs, inputs, strict=True)), self._outputs)


def in_order(module: nn.Module, inputs: Sequence[str], outputs: Sequence[str], result: object) -> nn.Module:
    """``module`` itself where it takes ``inputs`` in order and ``result``, what it returned, is its outputs, so that its weights keep their
    names; else ``InOrder``.
    """
    _, named = arguments(module, dict.fromkeys(inputs))
    is_tuple = isinstance(result, tuple | list) and len(result) == len(outputs) and all(isinstance(value, Tensor) for value in result)
    is_plain = isinstance(result, Tensor) or (is_tuple and not set(outputs) <= (fields_of(result) or {}).keys())
    return module if is_plain and not named else InOrder(module, inputs, outputs)


def _in_order(result: object, outputs: Sequence[str], kind: str, strict: bool) -> tuple[Tensor, ...]:
    """All tensors in ``result``, or those that lie in no tuple of their own: what there are as many of as ``outputs``.

    All of them where that is neither, unless ``strict``: a package may have lost an output.
    """
    values = (result,) if isinstance(result, Tensor) else result
    if not isinstance(values, tuple | list) or not (tensors := tuple(_tensors_in(values))):
        raise ConfigError(f"forward returns {kind}; return a tensor, a tuple of tensors, or tensors by name")
    for candidates in (tensors, tuple(value for value in values if isinstance(value, Tensor))):
        if len(candidates) == len(outputs):
            return candidates
    if not (outputs and strict):
        return tensors
    raise ConfigError(f"forward returns {len(tensors)} tensors, {len(outputs)} outputs are named ({', '.join(outputs)})")


def _tensors_in(values: Sequence[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors_in(value)


def _listed(fields: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name!r} {tuple(value.shape)}" if isinstance(value, Tensor) else f"{name!r} (a {type(value).__name__})"
        for name, value in fields.items()
        if value is not None
    )
