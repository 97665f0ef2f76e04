"""Core ML's choice of a back end per op: the cheapest path through the program, with what every other choice would cost.

The ops are a chain in file order. A path picks one back end an op. It pays the estimate of every op there, a switch wherever the back end
changes, a launch wherever it becomes the engine, and a switch back where it ends on the engine. Program inputs are free.
Source: K of tables.toml, the constants of Apple's analytics; that the compiler takes this minimum is K's finding on 482 programs.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from coreflow.export.engine.targets import BACKENDS, Backend, Target

TIE_MS = 1e-6
_ROUNDING = 1e-12  # relative: sums of one path in two orders may differ by as much
Costs = Sequence[Mapping[Backend, float]]  # by op: milliseconds on each back end that takes it
# The back end of an op, and whether the engine has run before it: a later launch may have another price.
_State = tuple[Backend, bool]
_STATES: tuple[_State, ...] = (("ane", False), ("ane", True), ("bnns", False), ("bnns", True), ("classic", False), ("classic", True))
_ENGINE: tuple[Backend, ...] = ("ane",)
_CPU: tuple[Backend, ...] = ("bnns", "classic")


def device_of(backend: Backend) -> tuple[Backend, ...]:
    """The back ends of the same device; both that are not the engine's are the CPU's."""
    return _ENGINE if backend == "ane" else _CPU


@dataclass(frozen=True, slots=True)
class Choice:
    """The cheapest path, and what keeps it: ``margins[i]`` is what the best path with op ``i`` on the other device costs more.

    >>> choice = choose([{"ane": 0.1, "bnns": 0.6, "classic": 0.7}], find_targets("M4/macOS27")[0])
    >>> choice.backends, round(choice.margins[0], 3)
    (('ane',), 0.25)

    A margin below ``TIE_MS`` is a tie, broken here in favour of staying where the path is; infinite where no other device takes the op.
    ``segments`` are the first and last op of every run of one device, and ``flips`` what the best path costs more that has no op
    of the segment there.
    """

    backends: tuple[Backend, ...]
    total_ms: float
    margins: tuple[float, ...]
    segments: tuple[tuple[int, int], ...]
    flips: tuple[float, ...]


def choose(costs: Costs, target: Target) -> Choice:
    """The cheapest path; every op needs at least one back end."""
    if not costs:
        return Choice((), 0.0, (), (), ())
    before, after = _before(costs, target), _after(costs, target)
    total = min(before[0][state] + after[0][state] for state in before[0])
    path = _walk(costs, after, target, total)
    backends = tuple(backend for backend, _ in path)
    margins = tuple(
        min((before[i][state] + after[i][state] for state in before[i] if (state[0] == "ane") != (backend == "ane")), default=math.inf)
        - total
        for i, backend in enumerate(backends)
    )
    edges = [i for i in range(1, len(path)) if (backends[i] == "ane") != (backends[i - 1] == "ane")]
    segments = tuple(zip([0, *edges], [edge - 1 for edge in edges] + [len(path) - 1], strict=True))
    flips = tuple(_flip(costs, before, after, segment, device_of(backends[segment[0]]), target) - total for segment in segments)
    return Choice(backends, total, tuple(max(margin, 0.0) for margin in margins), segments, flips)


def _edge(state: _State | None, later: _State, target: Target) -> float:
    if state is not None and state[0] == later[0]:
        return 0.0
    switch = 0.0 if state is None else target.switch_ms
    if later[0] != "ane":
        return switch
    return switch + (target.second_launch_ms if state is not None and state[1] else target.launch_ms)


def _follows(state: _State | None, later: _State) -> bool:
    """Whether a path may go from one state to the other: the engine has run from its first op on."""
    had_run = state is not None and state[1]
    return later[1] == (had_run or later[0] == "ane")


def _states(cost: Mapping[Backend, float]) -> list[_State]:
    return [state for state in _STATES if state[0] in cost and (state[1] or state[0] != "ane")]


def _before(costs: Costs, target: Target) -> list[dict[_State, float]]:
    """By op and state: the least cost up to and with the op."""
    first: dict[_State, float] = {
        state: _edge(None, state, target) + costs[0][state[0]] for state in _states(costs[0]) if _follows(None, state)
    }
    table = [first]
    for cost in costs[1:]:
        table.append(_step(table[-1], cost, cost, target))
    return table


def _step(last: Mapping[_State, float], cost: Mapping[Backend, float], allowed: Collection[Backend], target: Target) -> dict[_State, float]:
    """One op further, on the back ends that are allowed."""
    reached: dict[_State, float] = {}
    for later in _states(cost):
        ways = [value + _edge(state, later, target) for state, value in last.items() if _follows(state, later)]
        if ways and later[0] in allowed:
            reached[later] = min(ways) + cost[later[0]]
    return reached


def _after(costs: Costs, target: Target) -> list[dict[_State, float]]:
    """By op and state: the least cost of all that comes after the op."""
    table: list[dict[_State, float]] = [{state: target.switch_ms if state[0] == "ane" else 0.0 for state in _states(costs[-1])}]
    for cost, later_cost in zip(reversed(costs[:-1]), reversed(costs[1:]), strict=True):
        later_table = table[-1]
        table.append(
            {
                state: min(
                    _edge(state, later, target) + later_cost[later[0]] + value
                    for later, value in later_table.items()
                    if _follows(state, later)
                )
                for state in _states(cost)
            }
        )
    return table[::-1]


def _walk(costs: Costs, after: Sequence[Mapping[_State, float]], target: Target, total: float) -> list[_State]:
    """A path within ``TIE_MS`` of the best that stays where it is as long as it may, and starts on the engine if it may."""
    path: list[_State] = []
    spent, state = 0.0, None
    least = total + max(TIE_MS, _ROUNDING * total)
    for cost, rest in zip(costs, after, strict=True):
        ways = {later: spent + _edge(state, later, target) + cost[later[0]] for later in rest if _follows(state, later)}
        within = [later for later, value in ways.items() if value + rest[later] <= least]
        chosen = next((later for later in within if state is not None and later[0] == state[0]), None)
        chosen = chosen or min(within, key=lambda later: BACKENDS.index(later[0]))
        path.append(chosen)
        spent, state = ways[chosen], chosen
    return path


def _flip(
    costs: Costs,
    before: Sequence[Mapping[_State, float]],
    after: Sequence[Mapping[_State, float]],
    segment: tuple[int, int],
    device: Sequence[Backend],
    target: Target,
) -> float:
    """The cost of the best path with no op of the segment on the device; infinite where one runs there only."""
    first, last = segment
    others = tuple(backend for backend in BACKENDS if backend not in device)
    if first == 0:
        reached = {state: value for state, value in before[0].items() if state[0] in others}
    else:
        reached = _step(before[first - 1], costs[first], others, target)
    for i in range(first + 1, last + 1):
        reached = _step(reached, costs[i], others, target)
    return min((value + after[last][state] for state, value in reached.items()), default=math.inf)
