"""A plan as one Python function, for unobserved runs.

Every run of a plan builds the arguments of every op from its step. The function has them written out, one line per op, with the same
results. On a T5 decoder step of 273 small ops that takes a tenth off the whole prediction.
"""

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from coreflow.models.errors import CoreflowError
from coreflow.runtime.lift.plan.arguments import convert
from coreflow.runtime.lift.plan.plan import Plan, Step, not_executable

_FILE = "<plan>"  # where Python says that an error of the function arose


class CompiledPlan:
    """``plan``, which has no control flow, as a function of its input values.

    >>> outputs = CompiledPlan(plan)(plan.stored(inputs))
    """

    def __init__(self, plan: Plan) -> None:
        self._steps = plan.steps
        computed = {*plan.inputs, *(slot for step in plan.steps for slot, _ in step.writes)}
        names: dict[str, Any] = {f"s{slot}": value for slot, value in enumerate(plan.constants) if slot not in computed}
        names.update(convert=convert, only=_only_result)
        lines = [f"def run({', '.join(map(_slot, plan.inputs))}):"]
        lines += (_line(number, step, names, computed) for number, step in enumerate(plan.steps))
        lines.append(f" return {_tuple(plan.outputs)}")
        exec(compile("\n".join(lines), _FILE, "exec"), names)  # of the package there are only numbers of slots in it
        self._run: Callable[..., tuple[Any, ...]] = names.pop("run")

    def __call__(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """The outputs; ``UnsupportedError`` names the op that fails."""
        try:
            return self._run(*values)
        except CoreflowError:
            raise
        except Exception as error:  # whatever torch or a lowering raises: the op, as this package uses it, cannot be executed
            step = self._step_that_failed(error.__traceback__)
            raise not_executable(step.package, step.op, error) from error

    def _step_that_failed(self, traceback: TracebackType | None) -> Step:
        """The step on whose line the error arose; line 1 has the arguments."""
        while traceback is not None and traceback.tb_frame.f_code is not self._run.__code__:
            traceback = traceback.tb_next
        assert traceback is not None
        return self._steps[traceback.tb_lineno - 2]


def _line(number: int, step: Step, names: dict[str, Any], computed: set[int]) -> str:
    """The statements of one step; the values that they name go into ``names``."""

    def named(name: str, value: Any) -> str:
        names[f"{name}_{number}"] = value
        return f"{name}_{number}"

    def arguments() -> Iterator[str]:
        for name, value in step.fixed.items():
            yield f"{name}={named(name, value)}"
        for name, slot in step.reads:
            yield f"{name}={_slot(slot)}"
        for name, form, source in step.converts:
            value = _slot(source) if isinstance(source, int) else _tuple(source)
            yield f"{name}={value}" if form == "tensors" else f"{name}=convert({form!r}, {value})"

    assert not step.blocks
    result = f"{named('function', step.function)}({', '.join(arguments())})"
    if len(step.writes) == 1:
        result = f"only({result})"
    targets = ", ".join(_slot(slot) for slot, _ in step.writes)
    statements = [f" {targets} = {result}" if targets else f" {result}"]
    for index, (slot, rounding) in enumerate(step.writes):
        if rounding is not None:
            statements.append(f"{_slot(slot)} = {named(f'rounding{index}', rounding)}({_slot(slot)})")
    statements += (f"{_slot(slot)} = None" for slot in step.frees if slot in computed)
    return "; ".join(statements)


def _only_result(result: Any) -> Any:
    """The one result of an op that may give a tuple."""
    return result[0] if type(result) is tuple else result


def _slot(slot: int) -> str:
    return f"s{slot}"


def _tuple(slots: Sequence[int]) -> str:
    return f"({''.join(f'{_slot(slot)}, ' for slot in slots)})"
