"""The budget where a reference simulates nothing: the saved program in float64, with errors as large as those of its precision drawn.

Its own rounding would excuse all that is wrong with it in fp16: numbers that overflow, sums in the wrong order. Errors that are drawn have
the size of one rounding each, and show what the network makes of them: weights of a deviation of 0.3 amplify them tenfold.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from coreflow.export.package.graph import Graph, Op, Program, Value
from coreflow.export.package.op_facts import facts_of
from coreflow.models.arrays import Array, Arrays
from coreflow.runtime.lift.engines.interpreter import Interpreter
from coreflow.runtime.lift.numerics.plain import Numerics, Rounding
from coreflow.validate.inputs.states import StatelessLifted
from coreflow.validate.pairing.stored import stored_constants

_TYPES = {"float16": torch.float16, "float32": torch.float32}
_DIGITS = {"float16": 11, "float32": 24}
_LEAST_EXPONENT = {"float16": -13, "float32": -125}  # of the smallest normal number, which is a half times two to this
_SHORT_BITS = 3  # a number whose last bits are all zero was written by a person, and rounded by nobody


class DrawnErrors(StatelessLifted):
    """A saved program in float64, with a rounding error drawn for every weight and for every result that its type cannot hold.

    >>> drawn = DrawnErrors(read_program("encoder.mlpackage"))
    >>> drawn.simulate(inputs, exact=model_fp64.predict(inputs), reference=recorded)

    The draws are the same in every process.
    """

    label = "drawn rounding"

    def __init__(self, program: Program) -> None:
        self._generator = torch.Generator().manual_seed(0)
        super().__init__(program.with_function(_with_errors(program.function()[0], self._generator)), "fp64")

    @cached_property
    def interpreter(self) -> Interpreter:
        """The interpreter, whose results have errors."""
        return Interpreter(self._graph, _Drawn("fp64", torch.float64, self._generator), self.device, self.program.path.name)

    def simulate(self, inputs: Arrays, exact: Arrays, reference: Sequence[Array]) -> tuple[Array, ...]:
        """``reference`` plus what the errors add to ``exact``, the outputs of the program in float64."""
        outputs = self.predict(inputs)
        with np.errstate(invalid="ignore"):
            return tuple(array + (outputs[name] - exact[name]).reshape(array.shape) for name, array in zip(outputs, reference, strict=True))


@dataclass(frozen=True, slots=True)
class _Drawn(Numerics):
    generator: torch.Generator = field(compare=False)

    def rounding(self, op: Op, output: Value) -> Rounding | None:
        """An error for each number that the type of ``output`` cannot hold, unless the op rounds nothing."""
        if facts_of(op.type).rounds_nothing or output.dtype not in _TYPES:
            return None
        return lambda tensor: torch.where(_is_held(tensor, output.dtype), tensor, _with_error(tensor, output.dtype, self.generator))


def _is_held(tensor: Tensor, dtype: str) -> Tensor:
    return ~tensor.isfinite() | (tensor.to(_TYPES[dtype]).to(tensor.dtype) == tensor)


def _with_error(tensor: Tensor, dtype: str, generator: torch.Generator) -> Tensor:
    """``tensor`` moved by up to half a last place of ``dtype``, evenly; zeros stay."""
    exponent = torch.frexp(tensor).exponent.clamp(min=_LEAST_EXPONENT[dtype])
    draw = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) - 0.5
    return torch.where(tensor == 0, tensor, tensor + torch.ldexp(draw, exponent - _DIGITS[dtype]))


def _with_errors(graph: Graph, generator: torch.Generator) -> Graph:
    """``graph`` with an error drawn for each weight; compressed ones, and tables of short numbers, stay as they are."""
    others = {}
    for stored in stored_constants(graph):
        if stored.low is None and stored.numbers.size > 1 and not _are_short(stored.numbers):
            weights = torch.from_numpy(stored.numbers.astype(np.float64))
            moved = _with_error(weights, stored.value.dtype, generator)
            others[id(stored.value)] = replace(stored.value, data=moved.numpy(), dtype="float64")
    return graph.with_values(others)


def _are_short(numbers: Array) -> bool:
    """Whether most numbers end in zero bits, as 0, 1 and -1e4 do."""
    bits = np.ascontiguousarray(numbers).reshape(-1).view(np.dtype(f"u{numbers.itemsize}"))
    return bool(np.count_nonzero(bits % 2**_SHORT_BITS) < bits.size / 2)
