"""The plans by which a CPU runs a program: the same lowerings and the same roundings as the general plan's, with less work.

- A product with constant weights has them laid out for oneDNN once; torch lays them out, or reads them as they lie, at every call. A
  convolution of images keeps channels innermost.
- With ``halves``, for fp16 numerics when nobody looks at single ops, a value that is declared fp16 lies in memory as fp16. Ops that only
  move values take it so, and arithmetic, which torch's CPU kernels compute in fp32 and round once (``ROUNDED_ONCE``); the others get it
  widened, and their result is rounded. Without, two passes over fp32 tensors after every op give the same bits.
  A product of a single row reads its weights as fp16 too, half the memory traffic; it still sums in fp32, but in another order, so there a
  last bit may differ.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from coreflow.export.package.graph import Graph, Op, Value
from coreflow.export.package.weights import release_pages
from coreflow.runtime.lift.numerics.plain import Numerics, Rounding
from coreflow.runtime.lift.ops.conv import conv_geometry, for_torch
from coreflow.runtime.lift.plan.planner import Planner, Step, as_tensor
from coreflow.runtime.lift.registry import Form, Lowering, find

# One torch function each, exact in fp32 but for a rounding, so that they give the same bits on every processor. Of others (erf and sqrt
# here, in torch 2.13) an fp16 kernel may differ from the rounded fp32 one, which may come from another library.
ROUNDED_ONCE = frozenset({"add", "sub", "mul", "real_div", "square"})
# Gives boxes that it was given, and computes how far they overlap to choose them.
_COMPUTES_TO_CHOOSE = frozenset({"non_maximum_suppression"})
_FLOATS = ("float16", "float32")
_NAMES = ("_reorder_linear_weight", "_linear_pointwise", "_reorder_convolution_weight", "_convolution_pointwise")
ONEDNN = torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in _NAMES)
_WORTH_RELEASING = 1 << 16  # bytes of a constant; giving pages back takes a call of the system
_ALONE: tuple[str, list[float], str] = ("none", [], "")  # nothing fused behind a product


class CpuPlanner(Planner):
    """Plans one function for the CPU under numerics that compute in fp32."""

    def __init__(self, graph: Graph, numerics: Numerics, package: str, *, halves: bool = False) -> None:
        self._halves = halves
        self._taken = "stored"  # how the op that is being planned takes constants: stored, wide, narrow (fp16), or as views of the file
        self._held: dict[tuple[int, torch.dtype], Tensor] = {}  # constants by id of the Value and what they are held in
        self._scratch = torch.empty(0)
        super().__init__(graph, numerics, torch.device("cpu"), package)
        self._held.clear()
        self._scratch = torch.empty(0)
        for value in graph.constants:
            _release(value)

    def stored_as(self, value: Value) -> torch.dtype:
        """The dtype in which a floating value lies in memory."""
        return torch.float16 if self._is_half(value) else torch.float32

    def _step(self, graph: Graph, op: Op, frees: Iterable[int]) -> Step:
        lowering = find(op.type, graph.opset)
        assert lowering is not None, op.type  # require_all
        if ONEDNN and self._is_product(op):
            taken = "view"
        elif self._is_lookup(op):
            taken = "narrow"
        else:
            taken = "stored" if self._takes_halves(op, lowering) else "wide"
        self._taken = taken
        step = super()._step(graph, op, frees)  # and those of its blocks
        if taken == "view":
            return replace(step, function=self._product(step), fixed={})
        if taken == "narrow":
            return replace(step, function=_then_widened(step.function))
        return replace(step, function=self._widened(step, lowering)) if taken == "wide" else step

    def _rounding(self, op: Op, value: Value, lowering: Lowering) -> Rounding | None:
        if not self._halves or value.kind != "tensor" or value.dtype not in _FLOATS:
            return super()._rounding(op, value, lowering)
        return _to_half if value.dtype == "float16" else _to_single

    def _known(self, value: Value, form: Form, op: Op | None = None, argument: str = "") -> Any:
        given = self.constants[id(value)][0] if value.data is None else value.data
        if form != "tensor" or value.dtype not in _FLOATS or not isinstance(given, Tensor | np.ndarray):
            return super()._known(value, form, op, argument)
        return self._floats(value, self._taken if op is not None else "stored")

    def _floats(self, value: Value, taken: str) -> Tensor:
        """A constant of floats: a view of the file where it lies there, else a tensor of its own, one for all who take it so."""
        given = self.constants[id(value)][0] if value.data is None else as_tensor(value.data, None)  # type: ignore[arg-type]
        if taken == "view":
            return given
        dtype = {"wide": torch.float32, "narrow": torch.float16}.get(taken, self.stored_as(value))
        key = id(value), dtype
        if key not in self._held:
            self._held[key] = given.to(dtype, copy=value.data is not None)
            _release(value)
        return self._held[key]

    def _is_half(self, value: Value) -> bool:
        return self._halves and value.dtype == "float16"

    def _is_lookup(self, op: Op) -> bool:
        """Whether fp32 values are picked from an fp16 table; it stays as it is, and what is picked is widened."""
        table = op.inputs.get("x")
        return (
            not self._halves
            and op.type in ("gather", "gather_along_axis", "gather_nd")
            and isinstance(table, Value)
            and isinstance(table.data, np.ndarray)
            and table.dtype == "float16"
        )

    def _takes_halves(self, op: Op, lowering: Lowering) -> bool:
        """Whether the op runs on values as they are stored.

        States and lists hold fp32, and mixed operands meet there; a number beside halves, such as a threshold, would be rounded to one.
        """
        if op.blocks or not self._halves:
            return True
        given = [(lowering.forms.get(name), value) for name in op.inputs for value in _parts(op, name)]
        opaque = any(form == "raw" and value.data is None for form, value in given)
        if opaque or not all(_fits_half(value) for form, value in given if form in ("scalar", "sequence")):
            return False
        tensors = [value.dtype for form, value in given if form in ("tensor", "tensors")]
        if op.type in ROUNDED_ONCE:
            return {*tensors, *(value.dtype for value in op.outputs)} == {"float16"}
        return lowering.exact and op.type not in _COMPUTES_TO_CHOOSE and not {"float32", "float64"} & {*tensors}

    def _widened(self, step: Step, lowering: Lowering) -> Callable[..., Any]:
        """The function of the step behind a widening of every computed fp16 argument."""
        computed = [name for name, _ in step.reads] + [name for name, _, _ in step.converts]
        narrow = [n for n in computed if lowering.forms[n] in ("tensor", "tensors") and any(map(self._is_half, _parts(step.op, n)))]
        function = step.function
        if not narrow:
            return function

        def widened(**arguments: Any) -> Any:
            for name in narrow:
                given = arguments[name]
                arguments[name] = tuple(map(_to_single, given)) if isinstance(given, tuple) else _to_single(given)
            return function(**arguments)

        return widened

    def _is_product(self, op: Op) -> bool:
        """Whether all but ``x`` is constant, and the shapes are such that weights can be laid out for them."""
        x, weight = op.inputs.get("x"), op.inputs.get("y" if op.type == "matmul" else "weight")
        if op.type not in ("linear", "matmul", "conv") or not isinstance(x, Value) or not isinstance(weight, Value):
            return False
        others = [value for name in op.inputs if name != "x" for value in _parts(op, name)]
        if self._is_known(x) or not all(map(self._is_known, others)) or any(v.dtype not in _FLOATS for v in (x, weight, op.outputs[0])):
            return False
        sizes, weights = x.shape or (), weight.shape or ()
        if not all((*sizes, *weights)) or len(sizes) < 2:  # open, or nothing in it
            return False
        if op.type == "conv":
            return len(sizes) == len(weights) == 4
        turned = op.inputs.get("transpose_x")
        return len(weights) == 2 and not (isinstance(turned, Value) and self._known(turned, "scalar"))

    def _product(self, step: Step) -> Callable[[Tensor], Tensor]:
        """What computes the step from ``x`` alone."""
        op, fixed = step.op, step.fixed
        x = op.inputs["x"]
        assert isinstance(x, Value) and x.shape is not None
        shape = tuple(extent or 0 for extent in x.shape)
        bias = fixed.get("bias")
        if bias is not None:
            bias = bias.to(torch.float32, copy=True) if bias.any() else None
        weight = fixed["y" if op.type == "matmul" else "weight"]
        if op.type == "matmul" and not fixed.get("transpose_y"):
            weight = weight.transpose(0, 1)
        rows = math.prod(shape[:-1])
        floats = (*op.outputs, *(value for name in ("x", "y", "weight", "bias") if name in op.inputs for value in _parts(op, name)))
        if op.type != "conv" and rows == 1 < len(weight) and all(map(self._is_half, floats)):
            return self._one_row(op, weight, bias)
        wide = self._wide(weight)
        for value in op.input_values():
            _release(value)  # before there is a second copy
        if op.type != "conv":
            return _linear(rows, wide, bias)
        return _convolution(shape, wide, bias, **{name: value for name, value in fixed.items() if name not in ("weight", "bias")})

    def _wide(self, weight: Tensor) -> Tensor:
        """``weight`` as fp32 for a moment: one buffer for all, since large ones that come and go leave holes between those that stay."""
        if len(self._scratch) < weight.numel():
            self._scratch = torch.empty(weight.numel())
        return self._scratch[: weight.numel()].view(weight.shape).copy_(weight)

    def _one_row(self, op: Op, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        """A product of one row, in fp16: torch sums it in fp32 and rounds once, behind the bias."""
        source = op.inputs.get("weight")
        held = self._floats(source, "stored") if isinstance(source, Value) else weight.contiguous().clone()
        narrow = None if bias is None else bias.half()
        return lambda x: F.linear(x, held, narrow)


def _linear(rows: int, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A product of ``rows`` rows with ``weight`` (D_out, D_in)."""
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    linear = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: linear(x.float(), laid_out, bias, *_ALONE)


def _convolution(shape: tuple[int, ...], weight: Tensor, bias: Tensor | None, groups: int = 1, **given: Any) -> Callable[[Tensor], Tensor]:
    """A convolution of images of ``shape`` (B, C, H, W) with ``weight`` (C_out, C / groups, kernel height, kernel width)."""
    strides, padding, dilations = conv_geometry(shape, weight.shape, **given)
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


def _parts(op: Op, name: str) -> tuple[Value, ...]:
    argument = op.inputs[name]
    return argument if isinstance(argument, tuple) else (argument,)


def _then_widened(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **arguments: _to_single(function(**arguments))


def _fits_half(value: Value) -> bool:
    """Whether a number that is no tensor to its op is none of floating point, or one that fp16 holds."""
    if "float" not in value.dtype:
        return True
    with np.errstate(over="ignore"):
        return isinstance(value.data, np.ndarray) and bool((value.data == value.data.astype(np.float16)).all())


def _release(value: Value) -> None:
    """Lets the pages of the weight file go after a constant was copied."""
    if isinstance(value.data, np.ndarray) and value.data.nbytes > _WORTH_RELEASING:
        release_pages(value.data)


def _to_half(result: Any) -> Any:
    return result.to(torch.float16) if isinstance(result, Tensor) and result.dtype == torch.float32 else result


def _to_single(result: Any) -> Any:
    return result.to(torch.float32) if isinstance(result, Tensor) and result.dtype == torch.float16 else result
