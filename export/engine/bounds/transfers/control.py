"""Control flow, states, and numbers that are drawn."""

import numpy as np

from coreflow.export.engine.bounds.bound import Bound, between, hull
from coreflow.export.engine.bounds.registry import Call, transfer
from coreflow.export.package.graph import Value

_ROUNDS = 3  # of a loop, in which its variables may still grow


@transfer("cond")
def cond(call: Call) -> tuple[Bound, ...]:
    """What either block gives."""
    branches = [call.run(block, ()) for block in call.op.blocks]
    return tuple(hull(results[0].shape, results) for results in zip(*branches, strict=True))


@transfer("while_loop")
def while_loop(call: Call) -> tuple[Bound, ...]:
    """What the variables are at first and after every round; where they still grow after some rounds, anything."""
    condition, body = call.op.blocks
    variables = [hull(variable.shape, [variable]) for variable in call.values("loop_vars")]  # intervals alone, which rounds may keep
    for count in range(_ROUNDS + 1):
        call.run(condition, variables)
        results = call.run(body, variables)
        grown = [hull(one.shape, [one, other]) for one, other in zip(variables, results, strict=True)]
        growing = [i for i, (one, other) in enumerate(zip(variables, grown, strict=True)) if _grows(one, other)]
        if not growing:
            break
        for i in growing:
            variables[i] = grown[i] if count < _ROUNDS - 1 else between(grown[i].shape, -np.inf, np.inf)
    return tuple(variables)


def _grows(one: Bound, other: Bound) -> bool:
    return bool((other.low < one.low).any() or (other.high > one.high).any())


@transfer("read_state")
def read_state(call: Call) -> Bound:
    """What the state holds."""
    return call["input"]


@transfer("write_state", "coreml_update_state")
def write_state(call: Call) -> Bound | tuple[Bound, ...]:
    """The state may hold this, too."""
    names = ("input", "data") if call.op.type == "write_state" else ("state", "value")
    state, bound = call.op.inputs[names[0]], call[names[1]]
    assert isinstance(state, Value)
    call.write(state, bound)
    return bound if call.op.outputs else ()


@transfer("random_uniform")
def random_uniform(call: Call) -> Bound:
    """Within its two ends."""
    return between(call.shape(), call.number("low", 0.0), call.number("high", 1.0))


@transfer("random_bernoulli")
def random_bernoulli(call: Call) -> Bound:
    """0 or 1."""
    return between(call.shape(), 0.0, 1.0)
