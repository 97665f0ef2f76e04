"""The safe table: rewrites of torch operations without which the converter reads an exported program wrongly, or not at all.

The converter (coremltools 9.0) ignores keyword arguments of exported operations that it does not ask for, without a word: ``add(alpha=)``
adds the whole, ``zeros_like(dtype=)`` keeps the dtype of its source (an inverted padding mask), ``gelu(approximate="tanh")`` is the exact
one. ``safe_decompositions`` rewrites the operations known to be concerned, unless a lowering (``targets/lowerings``) reads them right, for
traces too; ``ignored_keywords`` finds what is left, which nobody should convert. The whole of torch's table is no way out:
it takes attention and einsum to pieces, and has operations that the converter lacks in turn.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from coreflow.export.targets.lowerings.registry import LOWERINGS, load_families

_aten = torch.ops.aten
# Taken from torch's own table: the converter lacks them.
_LACKING = frozenset(
    f"aten::{name}"
    for name in (
        "gru.input",
        "gru_cell",
        "lstm.input",
        "lstm_cell",
    )
)
# Keyword arguments that the converter reads, by operation. Any other is lost.
_READ: Mapping[str, frozenset[str]] = {
    "aten::_to_copy": frozenset({"dtype"}),
    "aten::addmm": frozenset({"alpha", "beta"}),
    "aten::baddbmm": frozenset({"alpha", "beta"}),
    "aten::cumsum": frozenset({"dtype"}),
    "aten::div": frozenset({"rounding_mode"}),
    "aten::full": frozenset({"dtype"}),
    "aten::ones": frozenset({"dtype"}),
    "aten::scaled_dot_product_attention": frozenset({"scale"}),
    "aten::scatter": frozenset({"reduce"}),
    "aten::searchsorted": frozenset({"right", "side"}),
}
# Where tensors lie, and copies of them, mean nothing to a program.
_MEANINGLESS = frozenset({"device", "layout", "memory_format", "non_blocking", "pin_memory", "generator"})


def safe_decompositions() -> dict[Any, Callable[..., Any]]:
    """The table for ``ExportedProgram.run_decompositions``.

    >>> torch.export.export(module, inputs, strict=False).run_decompositions(safe_decompositions())
    """
    own = torch.export.default_decompositions()
    lacking = {operation: own[operation] for operation in list(own) if hasattr(operation, "name") and operation.name() in _LACKING}
    return {**lacking, **_REWRITES}


def ignored_keywords(exported: ExportedProgram) -> list[str]:
    """Keyword arguments that the converter would ignore, as ``alpha= of aten::rsub``; those with their default value are no loss."""
    load_families()  # which read all of theirs
    ignored = []
    for node in exported.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or schema.name in LOWERINGS:
            continue
        defaults = {argument.name: argument.default_value for argument in schema.arguments}
        known = _READ.get(schema.name, frozenset()) | _MEANINGLESS
        ignored += [
            f"{keyword}= of {schema.name}"
            for keyword, value in node.kwargs.items()
            if keyword not in known and value is not None and value != defaults.get(keyword)
        ]
    return sorted(set(ignored))


def _add(x: Tensor, other: Tensor, *, alpha: float = 1) -> Any:
    return NotImplemented if alpha == 1 else _aten.add.Tensor(x, other * alpha)


def _rsub(x: Tensor, other: Tensor, *, alpha: float = 1) -> Any:
    return _aten.sub.Tensor(other, x * alpha)


def _gelu(x: Tensor, *, approximate: str = "none") -> Any:
    if approximate == "none":
        return NotImplemented
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _full(size: Sequence[int], value: float, *, dtype: torch.dtype | None = None, **_: Any) -> Any:
    if dtype is not None:
        return NotImplemented
    own = {bool: torch.bool, int: torch.int64}.get(type(value), torch.get_default_dtype())
    return _aten.full.default(size, value, dtype=own)


def _filled(value: float) -> Callable[..., Tensor]:
    """``zeros`` or ``ones`` by ``full``, whose dtype the converter reads."""

    def filled(size: Sequence[int], *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return _aten.full.default(size, value, dtype=dtype or torch.get_default_dtype())

    return filled


def _filled_like(value: float) -> Callable[..., Tensor]:
    def filled(x: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return _aten.full.default(list(x.shape), value, dtype=dtype or x.dtype)

    return filled


def _full_like(x: Tensor, value: float, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return _filled_like(value)(x, dtype=dtype)


def _in_dtype_of_result(operation: Any) -> Callable[..., Any]:
    """A reduction of what was cast before, as ``sum(dtype=)`` does."""

    def reduce(x: Tensor, *arguments: Any, dtype: torch.dtype | None = None) -> Any:
        return NotImplemented if dtype is None else operation(x.to(dtype), *arguments)

    return reduce


def _cast_after(operation: Any) -> Callable[..., Any]:
    """``arange`` in the dtype of its arguments, cast afterwards."""

    def make(*arguments: Any, dtype: torch.dtype | None = None, **_: Any) -> Any:
        return NotImplemented if dtype is None else operation(*arguments).to(dtype)

    return make


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if not enable_gqa:
        return NotImplemented
    groups = query.shape[-3] // key.shape[-3]
    key, value = (x.unsqueeze(-3).expand(*x.shape[:-2], groups, *x.shape[-2:]).flatten(-4, -3) for x in (key, value))
    return _aten.scaled_dot_product_attention.default(query, key, value, mask, dropout, is_causal, scale=scale)


_REWRITES: Mapping[Any, Callable[..., Any]] = {
    _aten.add.Tensor: _add,
    _aten.rsub.Tensor: _rsub,
    _aten.gelu.default: _gelu,
    _aten.full.default: _full,
    _aten.zeros.default: _filled(0),
    _aten.ones.default: _filled(1),
    _aten.zeros_like.default: _filled_like(0),
    _aten.ones_like.default: _filled_like(1),
    _aten.full_like.default: _full_like,
    **{getattr(_aten.arange, form): _cast_after(getattr(_aten.arange, form)) for form in ("default", "start", "start_step")},
    **{operation: _in_dtype_of_result(operation) for operation in (_aten.sum.default, _aten.sum.dim_IntList)},
    **{operation: _in_dtype_of_result(operation) for operation in (_aten.mean.default, _aten.mean.dim)},
    _aten.where.ScalarOther: lambda condition, x, other: _aten.where.self(condition, x, torch.full((), other, dtype=x.dtype)),
    _aten.where.ScalarSelf: lambda condition, x, other: _aten.where.self(condition, torch.full((), x, dtype=other.dtype), other),
    _aten.unsafe_split.Tensor: lambda x, size, dim=0: list(_aten.split.Tensor(x, size, dim)),
    _aten.scaled_dot_product_attention.default: _attention,
}
