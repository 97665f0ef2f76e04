"""Facts of every MIL op, stated once: rounding, length of its sums, cost, and risks in fp16. Torch-free.

A new lowering needs an entry here; ``OpFacts()`` is the entry of an op without special facts.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from coreflow.export.package.graph import Op
from coreflow.export.package.op_counts import (
    attention_multiply_adds,
    conv_multiply_adds,
    conv_transpose_multiply_adds,
    einsum_multiply_adds,
    linear_multiply_adds,
    matmul_multiply_adds,
    one_term,
    recurrent_multiply_adds,
    reduced_terms,
    row_terms,
    weight_terms,
)
from coreflow.models import fp16


class Range(Protocol):
    """The values that an argument had.

    >>> seen: Range = ranges[id(op.inputs["x"])]
    >>> seen.low, seen.high, seen.smallest, seen.largest
    """

    low: float
    high: float
    smallest: float  # magnitude other than 0

    @property
    def largest(self) -> float:
        """Magnitude."""


@dataclass(frozen=True, slots=True)
class Risk:
    """A range of an argument in which an op may go wrong in fp16.

    >>> [risk.text for risk in facts_of("softplus").risks if risk.reached(seen["x"])]
    """

    argument: str
    text: str
    reached: Callable[[Range], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpFacts:
    """Facts of one op.

    >>> facts_of("linear").is_contraction, facts_of("reshape").rounds
    (True, 'never')

    ``rounds``: ``never`` where every result is a value that the element type of the inputs holds (the op moves, picks, compares, or
    cuts off digits), ``once`` for arithmetic of two numbers that is exact but for one rounding, ``freely`` for everything else.
    """

    rounds: Literal["never", "once", "freely"] = "freely"
    multiply_adds: Callable[[Op], int | None] | None = None  # of one call; None as a result where a shape is open
    terms: Callable[[Op], int] = one_term  # products or terms added up for one element of the result
    risks: tuple[Risk, ...] = ()
    looks_up: bool = False  # picks elements of its argument x by index
    computes_to_pick: bool = False  # rounds never, but computes with its inputs to choose among them
    mixes_types: bool = False  # since iOS17 a constant may be of another type than the result
    is_limit: bool = False  # a parameter beyond all fp16 numbers limits nothing
    keeps_order: bool = False  # gives the elements that it reads, in their order, in another shape
    is_bookkeeping: bool = False  # a converter adds and removes it freely

    @property
    def rounds_nothing(self) -> bool:
        """Whether its results need no rounding."""
        return self.rounds == "never"

    @property
    def is_contraction(self) -> bool:
        """Whether it sums products of two operands."""
        return self.multiply_adds is not None


def facts_of(op_type: str) -> OpFacts:
    """The facts of an op; ``OpFacts()`` for an op that is not listed."""
    return FACTS.get(op_type, _UNLISTED)


def _above(limit: float, text: str) -> tuple[Risk, ...]:
    return (Risk("x", f"x above {limit:g}, {text}", lambda seen: seen.high > limit),)


def _beyond(limit: float, text: str) -> tuple[Risk, ...]:
    return (Risk("x", f"|x| above {limit:g}, {text}", lambda seen: seen.largest > limit),)


def _near_zero(argument: str, text: str) -> tuple[Risk, ...]:
    tiny = fp16.SMALLEST_NORMAL
    reached: Callable[[Range], bool] = lambda seen: seen.low <= 0 <= seen.high or seen.smallest < tiny  # noqa: E731
    return (Risk(argument, f"|{argument}| below {tiny:.2g}, {text}", reached),)


_OVERFLOWS = "where the result overflows fp16"
_SQUARE = math.floor(math.sqrt(fp16.MAX))
_SQUARE_OVERFLOWS = _beyond(_SQUARE, "whose square overflows fp16")
_SOFTPLUS = _above(10.4, "where 0 has been seen on a device (coremltools issue 2687)")
_FEW_DIGITS = _near_zero("x", "of which fp16 holds few digits or none")

_UNLISTED = OpFacts()
_ROUNDS_NEVER = OpFacts(rounds="never")
_BOOKKEEPING = OpFacts(is_bookkeeping=True)
_ROUNDS_ONCE = OpFacts(rounds="once")
_REDUCES = OpFacts(terms=reduced_terms)
_RECURRENT = OpFacts(multiply_adds=recurrent_multiply_adds)


def _for_all(ops: str, facts: OpFacts) -> dict[str, OpFacts]:
    return dict.fromkeys(ops.split(), facts)


FACTS: Mapping[str, OpFacts] = {
    # contractions
    "conv": OpFacts(multiply_adds=conv_multiply_adds, terms=weight_terms),
    "conv_transpose": OpFacts(multiply_adds=conv_transpose_multiply_adds, terms=weight_terms),
    "einsum": OpFacts(multiply_adds=einsum_multiply_adds, terms=row_terms),
    "linear": OpFacts(multiply_adds=linear_multiply_adds, terms=weight_terms, mixes_types=True),
    "matmul": OpFacts(multiply_adds=matmul_multiply_adds, terms=row_terms, mixes_types=True),
    "scaled_dot_product_attention": OpFacts(multiply_adds=attention_multiply_adds, terms=row_terms),
    **_for_all("gru lstm rnn", _RECURRENT),
    # sums over axes
    **_for_all("reduce_argmax reduce_argmin reduce_l1_norm reduce_log_sum reduce_log_sum_exp reduce_mean reduce_prod reduce_sum", _REDUCES),
    **_for_all("avg_pool l2_pool batch_norm local_response_norm softmax cumsum", _REDUCES),
    **_for_all("reduce_max reduce_min max_pool", OpFacts(rounds="never", terms=reduced_terms)),
    **_for_all("reduce_l2_norm reduce_sum_square layer_norm instance_norm l2_norm", OpFacts(terms=reduced_terms, risks=_SQUARE_OVERFLOWS)),
    # arithmetic, element by element
    **_for_all("add sub mul", _ROUNDS_ONCE),
    "square": OpFacts(rounds="once", risks=_beyond(_SQUARE, _OVERFLOWS)),
    "real_div": OpFacts(rounds="once", risks=_near_zero("y", "a divisor of which fp16 holds few digits or none")),
    "exp": OpFacts(risks=_above(round(math.log(fp16.MAX), 2), _OVERFLOWS)),
    "exp2": OpFacts(risks=_above(round(math.log2(fp16.MAX), 2), _OVERFLOWS)),
    "sinh": OpFacts(risks=_beyond(round(math.asinh(fp16.MAX), 2), _OVERFLOWS)),
    "cosh": OpFacts(risks=_beyond(round(math.acosh(fp16.MAX), 2), _OVERFLOWS)),
    "pow": OpFacts(risks=_SQUARE_OVERFLOWS),
    **_for_all("softplus softplus_parametric", OpFacts(risks=_SOFTPLUS)),
    **_for_all("log rsqrt inverse", OpFacts(risks=_FEW_DIGITS)),
    **_for_all("abs ceil floor maximum minimum round select sign", _ROUNDS_NEVER),
    "cast": _BOOKKEEPING,
    # Not rounds="never": since iOS17 the limits may be finer than x.
    **_for_all("clip threshold clamped_relu", OpFacts(is_limit=True)),
    # activations
    **_for_all("relu relu6 thresholded_relu", _ROUNDS_NEVER),
    # shapes and places
    **_for_all("expand_dims flatten2d identity reshape reshape_like squeeze", OpFacts(rounds="never", keeps_order=True)),
    **_for_all("batch_to_space concat depth_to_space pixel_shuffle pixel_unshuffle reverse reverse_sequence", _ROUNDS_NEVER),
    **_for_all("sliding_windows space_to_batch space_to_depth slice_by_index slice_by_size slice_update", _ROUNDS_NEVER),
    **_for_all("split stack transpose", _ROUNDS_NEVER),
    **_for_all("gather gather_along_axis gather_nd", OpFacts(rounds="never", looks_up=True)),
    # tensors made or chosen
    **_for_all("band_part fill fill_like one_hot pad tile topk", _ROUNDS_NEVER),
    "non_maximum_suppression": OpFacts(rounds="never", computes_to_pick=True),
    # images
    **_for_all("crop resize_nearest_neighbor upsample_nearest_neighbor", _ROUNDS_NEVER),
    # weights as they are stored
    **_for_all("constexpr_affine_dequantize constexpr_blockwise_shift_scale constexpr_cast constexpr_lut_to_dense", _BOOKKEEPING),
    **_for_all("constexpr_lut_to_sparse constexpr_sparse_blockwise_shift_scale constexpr_sparse_to_dense", _BOOKKEEPING),
    # control flow, lists, states
    **_for_all("cond while_loop list_gather list_read list_scatter list_write make_list", _ROUNDS_NEVER),
    **_for_all("coreml_update_state read_state write_state", OpFacts(rounds="never", is_bookkeeping=True)),
}
