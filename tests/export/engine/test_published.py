"""The published programs of M4, macOS 27: support, estimates, devices and cost shares of every op."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from coreflow.export.engine.cost import estimate
from coreflow.export.engine.segmenter import TIE_MS, Costs, choose
from coreflow.export.engine.support import support
from coreflow.export.engine.targets import BACKENDS, Target, find_targets
from tests.export.engine.published import PublishedProgram, published_programs

M4 = find_targets("M4/macOS27")[0]
# Ops whose size is known at run time only: the shares of these and of the cast behind them are not those of the rule.
SIZED_AT_RUN_TIME = {"iso/nonzero", "ctx/nonzero"}


def their_costs(program: PublishedProgram) -> Costs:
    return [{backend: op.ms[backend] for backend in op.backends} for op in program.ops]


def our_costs(program: PublishedProgram) -> Costs:
    return [
        {backend: ms for backend, ms in estimate(op.features, M4).ms.items() if backend != "ane" or support(op.features, M4).engine}
        for op in program.ops
    ]


def outcome(program: PublishedProgram, costs: Costs, target: Target = M4) -> str:
    """`exact`, `tie` where the published devices cost the same, else `wrong`."""
    choice = choose(costs, target)
    if "".join("A" if backend == "ane" else "C" for backend in choice.backends) == program.devices:
        return "exact"
    theirs = [
        {backend: ms for backend, ms in cost.items() if (backend == "ane") == (device == "A")}
        for cost, device in zip(costs, program.devices, strict=True)
    ]
    return "tie" if choose(theirs, target).total_ms - choice.total_ms < TIE_MS else "wrong"


def test_the_engine_takes_what_was_published() -> None:
    wrong = [
        (program.name, op.features.type)
        for program in published_programs()
        for op in program.ops
        if support(op.features, M4).engine != ("ane" in op.backends)
    ]
    assert not wrong


def test_every_refusal_has_a_reason() -> None:
    answers = [support(op.features, M4) for program in published_programs() for op in program.ops]
    assert all(bool(answer.reason) != answer.engine for answer in answers)


def test_estimates_are_within_5e_4_of_every_published_value() -> None:
    errors = {
        (program.name, index, op.features.type, backend): abs(estimate(op.features, M4).ms[backend] / op.ms[backend] - 1)
        for program in published_programs()
        for index, op in enumerate(program.ops)
        for backend in BACKENDS
        if backend in op.ms
    }
    assert len(errors) > 3000
    assert not {place: error for place, error in errors.items() if not error < 5e-4}


@pytest.mark.parametrize("costs", [their_costs, our_costs], ids=["published estimates", "our estimates"])
def test_every_placement_is_exact_or_a_tie(costs: Callable[[PublishedProgram], Costs]) -> None:
    counts = Counter(outcome(program, costs(program)) for program in published_programs())
    assert counts == {"exact": 302, "tie": 25}


@pytest.mark.parametrize(("switch_ms", "launch_ms"), [(0.125, 0.0), (0.0, 0.125), (0.125, 0.25), (0.25, 0.125)])
def test_other_constants_of_the_graph_are_refuted(switch_ms: float, launch_ms: float) -> None:
    other = replace(M4, switch_ms=switch_ms, launch_ms=launch_ms, second_launch_ms=launch_ms)
    assert any(outcome(program, their_costs(program), other) == "wrong" for program in published_programs())


def test_cost_shares_are_the_published_ones() -> None:
    compared = 0
    for program in published_programs():
        if program.shares is None or program.name in SIZED_AT_RUN_TIME:
            continue
        ms = [
            min(estimate(op.features, M4).ms[backend] for backend in op.backends if (backend == "ane") == (device == "A"))
            for op, device in zip(program.ops, program.devices, strict=True)
        ]
        for cost, share in zip(ms, program.shares, strict=True):
            compared += 1
            assert cost / sum(ms) == pytest.approx(share, abs=1e-4), program.name
    assert compared > 1000
