"""The policy of a CPU: the lowerings and roundings of the general plan, with less work.

- Constant weights of a product are laid out for oneDNN once; torch does so at every call, or reads them as they lie. A convolution of
  images keeps channels innermost.
- With ``fp16_storage``, for unobserved runs under fp16 numerics, a value that is declared fp16 lies in memory as fp16. Ops that
  round nothing take it so, and those that round once, which torch's CPU kernels compute in fp32; the others get it as fp32, and their
  result is rounded. Without, two passes over fp32 tensors after every op give the same bits.
  A product of a single row reads its weights as fp16 too, half the memory traffic; it still sums in fp32, but in another order, so there a
  last bit may differ.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from coreflow.export.package.graph import Graph, Op, Value
from coreflow.export.package.op_facts import facts_of
from coreflow.runtime.lift.numerics.plain import Numerics, Rounding
from coreflow.runtime.lift.ops.conv import conv_geometry, for_torch
from coreflow.runtime.lift.plan.arguments import plain, release
from coreflow.runtime.lift.plan.plan import Step
from coreflow.runtime.lift.registry import Lowering, find

_FLOATS = ("float16", "float32")
_NAMES = ("_reorder_linear_weight", "_linear_pointwise", "_reorder_convolution_weight", "_convolution_pointwise")
ONEDNN = torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in _NAMES)
_ALONE: tuple[str, list[float], str] = ("none", [], "")  # nothing fused behind a product


# How an op runs: on values as they are stored, on fp32 copies of those that are stored as fp16, as a look-up in a constant fp16 table, or
# as a product whose constant weights were laid out for it.
Way = Literal["stored", "fp32", "lookup", "product"]


class CpuPolicy:
    """How a CPU runs one function under numerics that compute in fp32.

    >>> plan = Planner(graph, CpuPolicy(graph, numerics_named("fp16"), fp16_storage=True)).plan()
    """

    device = torch.device("cpu")
    copies = True

    def __init__(self, graph: Graph, numerics: Numerics, *, fp16_storage: bool = False) -> None:
        self.numerics = numerics
        self._opset = graph.opset
        self._fp16_storage = fp16_storage
        self._expressions = {id(value) for op in graph.walk() if op.type.startswith("constexpr_") for value in op.outputs}
        self._ways: dict[int, Way] = {}  # by id of an Op
        self._scratch = torch.empty(0)

    def storage(self, op: Op | None, value: Value) -> torch.dtype | None:
        """fp16 for values declared so under ``fp16_storage``, else fp32; a constant as its op's way of running needs it."""
        way = "stored" if op is None else self._way(op)
        if way == "product":
            assert op is not None
            return torch.float16 if self._is_one_row(op) and value is op.inputs.get("weight") else None
        if way == "lookup":
            return torch.float16
        return torch.float16 if way == "stored" and self._is_fp16(value) else torch.float32

    def finish(self, step: Step) -> Step:
        """The step with the function of its way of running; under ``fp16_storage`` it leaves results as they are stored."""
        if self._fp16_storage:
            step = replace(step, writes=tuple(map(self._write, step.writes, step.op.outputs)))
        way = self._way(step.op)
        if way == "product":
            return replace(step, function=self._product(step), fixed={})
        if way == "lookup":
            return replace(step, function=_with_fp32_result(step.function))
        return replace(step, function=self._with_fp32_arguments(step)) if way == "fp32" else step

    def _write(self, write: tuple[int, Rounding | None], value: Value) -> tuple[int, Rounding | None]:
        if value.kind != "tensor" or value.dtype not in _FLOATS:
            return write
        return write[0], _to_float16 if value.dtype == "float16" else _to_float32

    def _way(self, op: Op) -> Way:
        way = self._ways.get(id(op))
        if way is None:
            way = self._ways[id(op)] = self._choose_way(op)
        return way

    def _choose_way(self, op: Op) -> Way:
        if ONEDNN and self._is_product(op):
            return "product"
        if self._is_lookup(op):
            return "lookup"
        return "stored" if self._takes_stored_values(op) else "fp32"

    def _is_fp16(self, value: Value) -> bool:
        return self._fp16_storage and value.dtype == "float16"

    def _is_constant(self, value: Value) -> bool:
        return value.data is not None or id(value) in self._expressions

    def _is_lookup(self, op: Op) -> bool:
        """Whether fp32 values are picked from an fp16 table; it stays as it is, and what is picked becomes fp32."""
        table = op.inputs.get("x")
        return (
            not self._fp16_storage
            and facts_of(op.type).looks_up
            and isinstance(table, Value)
            and isinstance(table.data, np.ndarray)
            and table.dtype == "float16"
        )

    def _takes_stored_values(self, op: Op) -> bool:
        """Whether the op runs on values as they are stored.

        States and lists hold fp32, and mixed operands meet there; a number beside fp16 tensors, such as a threshold, would be rounded.
        """
        if op.blocks or not self._fp16_storage:
            return True
        lowering = self._lowering(op)
        arguments = [(lowering.forms.get(name), value) for name in op.inputs for value in op.argument(name)]
        opaque = any(form == "raw" and value.data is None for form, value in arguments)
        if opaque or not all(_fits_fp16(value) for form, value in arguments if form in ("scalar", "sequence")):
            return False
        tensors = [value.dtype for form, value in arguments if form in ("tensor", "tensors")]
        facts = facts_of(op.type)
        # Of ops that round more often (erf and sqrt here, in torch 2.13) an fp16 kernel may differ from the rounded fp32 one, which may
        # come from another library; one torch function of two numbers gives the same bits on every processor.
        if facts.rounds == "once":
            return {*tensors, *(value.dtype for value in op.outputs)} == {"float16"}
        return facts.rounds_nothing and not facts.computes_to_pick and not {"float32", "float64"} & {*tensors}

    def _lowering(self, op: Op) -> Lowering:
        lowering = find(op.type, self._opset)
        assert lowering is not None, op.type  # the planner requires all
        return lowering

    def _with_fp32_arguments(self, step: Step) -> Callable[..., Any]:
        """The function of the step on fp32 copies of its computed fp16 arguments."""
        forms = self._lowering(step.op).forms
        computed = [name for name, _ in step.reads] + [name for name, _, _ in step.converts]
        names = [n for n in computed if forms[n] in ("tensor", "tensors") and any(map(self._is_fp16, step.op.argument(n)))]
        function = step.function
        if not names:
            return function

        def with_fp32_arguments(**arguments: Any) -> Any:
            for name in names:
                argument = arguments[name]
                arguments[name] = tuple(map(_to_float32, argument)) if isinstance(argument, tuple) else _to_float32(argument)
            return function(**arguments)

        return with_fp32_arguments

    def _is_product(self, op: Op) -> bool:
        """Whether all but ``x`` is constant, and the shapes are such that weights can be laid out for them."""
        x, weight = op.inputs.get("x"), _weight_of(op)
        if op.type not in ("linear", "matmul", "conv") or not isinstance(x, Value) or not isinstance(weight, Value):
            return False
        others = [value for name in op.inputs if name != "x" for value in op.argument(name)]
        if self._is_constant(x) or not all(map(self._is_constant, others)):
            return False
        if any(value.dtype not in _FLOATS for value in (x, weight, op.outputs[0])):
            return False
        extents, weight_extents = x.shape or (), weight.shape or ()
        if not all((*extents, *weight_extents)) or len(extents) < 2:  # open, or without elements
            return False
        if op.type == "conv":
            return len(extents) == len(weight_extents) == 4
        transposed = op.inputs.get("transpose_x")
        as_it_is = transposed is None or (
            isinstance(transposed, Value) and transposed.data is not None and not plain("scalar", transposed.data)
        )
        return len(weight_extents) == 2 and as_it_is

    def _is_one_row(self, op: Op) -> bool:
        """Whether a product has one row, and reads and gives fp16."""
        floats = (*op.outputs, *(value for name in ("x", "y", "weight", "bias") if name in op.inputs for value in op.argument(name)))
        if op.type == "conv" or not all(map(self._is_fp16, floats)):
            return False
        x, weight = op.argument("x")[0], _weight_of(op)
        assert x.shape is not None and isinstance(weight, Value) and weight.shape is not None
        *rows, columns_in = (extent or 0 for extent in x.shape)
        columns_out = math.prod(extent or 0 for extent in weight.shape) // columns_in
        return math.prod(rows) == 1 < columns_out

    def _product(self, step: Step) -> Callable[[Tensor], Tensor]:
        """The function that computes the step from ``x`` alone."""
        op, fixed = step.op, step.fixed
        bias = fixed.get("bias")
        if bias is not None:
            bias = bias.to(torch.float32, copy=True) if bias.any() else None
        weight = fixed["y" if op.type == "matmul" else "weight"]
        if op.type == "matmul" and not fixed.get("transpose_y"):
            weight = weight.transpose(0, 1)
        if self._is_one_row(op):
            return _one_row(weight.contiguous().clone() if op.type == "matmul" else weight, bias)
        fp32_weight = self._as_fp32(weight)
        for value in op.input_values():
            release(value)  # before there is a second copy
        x = op.argument("x")[0]
        assert x.shape is not None
        shape = tuple(extent or 0 for extent in x.shape)
        if op.type != "conv":
            return _linear(math.prod(shape[:-1]), fp32_weight, bias)
        geometry = {name: value for name, value in fixed.items() if name not in ("weight", "bias")}
        return _convolution(shape, fp32_weight, bias, **geometry)

    def _as_fp32(self, weight: Tensor) -> Tensor:
        """``weight`` as fp32 for a moment: one buffer for all, since large ones that come and go leave holes between those that stay."""
        if len(self._scratch) < weight.numel():
            self._scratch = torch.empty(weight.numel())
        return self._scratch[: weight.numel()].view(weight.shape).copy_(weight)


def _weight_of(op: Op) -> Value | tuple[Value, ...] | None:
    """The second factor of a product."""
    return op.inputs.get("y" if op.type == "matmul" else "weight")


def _one_row(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A product of one row with ``weight`` (D_out, D_in), in fp16: torch sums it in fp32 and rounds once, behind the bias."""
    fp16_bias = None if bias is None else bias.half()
    return lambda x: F.linear(x, weight, fp16_bias)


def _linear(rows: int, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A product of ``rows`` rows with ``weight`` (D_out, D_in)."""
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    linear = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: linear(x.float(), laid_out, bias, *_ALONE)


def _convolution(shape: tuple[int, ...], weight: Tensor, bias: Tensor | None, groups: int = 1, **window: Any) -> Callable[[Tensor], Tensor]:
    """A convolution of images of ``shape`` (B, C, H, W) with ``weight`` (C_out, C / groups, kernel height, kernel width)."""
    strides, padding, dilations = conv_geometry(shape, weight.shape, **window)
    around = for_torch(padding) if any(before != after for before, after in padding) else []
    if around:
        shape = (*shape[:2], *(extent + before + after for extent, (before, after) in zip(shape[2:], padding, strict=True)))
    even = [0, 0] if around else [before for before, _ in padding]
    laid_out = torch.ops.mkldnn._reorder_convolution_weight(weight, even, strides, dilations, groups, shape)
    convolution = torch.ops.mkldnn._convolution_pointwise.default

    def convolve(x: Tensor) -> Tensor:
        padded = F.pad(x, around) if around else x
        images = padded.to(torch.float32, memory_format=torch.channels_last)
        return convolution(images, laid_out, bias, even, strides, dilations, groups, *_ALONE)

    return convolve


def _with_fp32_result(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **arguments: _to_float32(function(**arguments))


def _fits_fp16(value: Value) -> bool:
    """Whether a number that is no tensor to its op is none of floating point, or one that fp16 holds."""
    if "float" not in value.dtype:
        return True
    with np.errstate(over="ignore"):
        return isinstance(value.data, np.ndarray) and bool((value.data == value.data.astype(np.float16)).all())


def _to_float16(result: Any) -> Any:
    return result.to(torch.float16) if isinstance(result, Tensor) and result.dtype == torch.float32 else result


def _to_float32(result: Any) -> Any:
    return result.to(torch.float32) if isinstance(result, Tensor) and result.dtype == torch.float16 else result
