"""The cheapest path against all paths: totals, margins, flips, and the prices of a second launch."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreflow.export.engine.segmenter import TIE_MS, Costs, choose
from coreflow.export.engine.targets import Backend, find_targets

M4 = find_targets("M4/macOS27")[0]
TARGETS = [M4, M4.with_second_launch(0.0), replace(M4, switch_ms=0.03, launch_ms=0.2, second_launch_ms=0.05)]
MILLISECONDS = st.one_of(st.sampled_from([0.0, 0.1, 0.125, 0.25, 0.5]), st.floats(0, 1))


@st.composite
def programs(draw: st.DrawFn) -> Costs:
    """Up to seven ops; each runs on the CPU, the engine, or both."""
    devices: list[tuple[Backend, ...]] = [("ane", "bnns", "classic"), ("bnns", "classic"), ("ane",)]
    return [{backend: draw(MILLISECONDS) for backend in draw(st.sampled_from(devices))} for _ in range(draw(st.integers(1, 7)))]


def slow_cost(path: tuple[Backend, ...], costs: Costs, switch: float, launch: float, second_launch: float) -> float:
    """The definition, written out: estimates, a switch a change, a launch a segment of the engine, a switch at an end on the engine."""
    total = math.fsum(cost[backend] for backend, cost in zip(path, costs, strict=True))
    total += switch * sum(a != b for a, b in itertools.pairwise(path))
    launches = [backend for backend, _ in itertools.groupby(path)].count("ane")
    if launches:
        total += launch + second_launch * (launches - 1)
    return total + (switch if path[-1] == "ane" else 0.0)


def paths(costs: Costs) -> Iterator[tuple[Backend, ...]]:
    yield from itertools.product(*(tuple(cost) for cost in costs))


def on_engine(path: tuple[Backend, ...]) -> list[bool]:
    return [backend == "ane" for backend in path]


@pytest.mark.parametrize("target", TARGETS, ids=["published", "second launch free", "other constants"])
@given(costs=programs())
def test_choice_is_the_best_of_all_paths(target: object, costs: Costs) -> None:
    assert isinstance(target, type(M4))
    every = {path: slow_cost(path, costs, target.switch_ms, target.launch_ms, target.second_launch_ms) for path in paths(costs)}
    best = min(every.values())
    choice = choose(costs, target)
    assert choice.total_ms == pytest.approx(best, abs=1e-9)
    assert every[choice.backends] <= best + TIE_MS + 1e-9
    chosen = on_engine(choice.backends)
    for i, margin in enumerate(choice.margins):
        others = [cost for path, cost in every.items() if on_engine(path)[i] != chosen[i]]
        assert margin == pytest.approx(min(others, default=math.inf) - best, abs=1e-9)
    assert [place for first, last in choice.segments for place in range(first, last + 1)] == list(range(len(costs)))
    for (first, last), flip in zip(choice.segments, choice.flips, strict=True):
        assert len(set(chosen[first : last + 1])) == 1
        assert first == 0 or chosen[first - 1] != chosen[first]
        others = [cost for path, cost in every.items() if not any(here == chosen[first] for here in on_engine(path)[first : last + 1])]
        assert flip == pytest.approx(min(others, default=math.inf) - best, abs=1e-9)


def both(engine: float, cpu: float) -> dict[Backend, float]:
    return {"ane": engine, "bnns": cpu, "classic": cpu}


def test_the_engine_must_save_a_quarter_of_a_millisecond_alone() -> None:
    assert choose([both(0.0, 0.249)], M4).backends == ("bnns",)
    assert choose([both(0.0, 0.251)], M4).backends == ("ane",)


def test_between_ops_of_the_cpu_it_must_save_three_eighths() -> None:
    fixed: dict[Backend, float] = {"bnns": 0.0, "classic": 0.0}
    assert choose([fixed, both(0.0, 0.374), fixed], M4).backends == ("bnns", "bnns", "bnns")
    assert choose([fixed, both(0.0, 0.376), fixed], M4).backends == ("bnns", "ane", "bnns")


def test_a_last_op_of_equal_cost_is_a_tie_and_stays_on_the_engine() -> None:
    choice = choose([both(0.0, 1.0), both(0.1, 0.1)], M4)
    assert choice.backends == ("ane", "ane")
    assert choice.margins[1] == pytest.approx(0, abs=TIE_MS)
    assert list(choice.flips) == pytest.approx([0.75])


def test_the_one_published_miss_turns_on_the_price_of_the_second_launch() -> None:
    """linear, relu, linear, relu, band_part, and the four again: 0.6403 to the end on the CPU, published engine, CPU, engine at 0.6576."""
    linear, relu = both(0.0072262, 0.1860516), both(0.0006554, 0.0006554)
    side: list[dict[Backend, float]] = [linear, relu, linear, relu]
    costs: Costs = [*side, {"bnns": 0.0005386, "classic": 0.0005386}, *side]
    published = "AAAACAAAA"
    assert "".join("A" if backend == "ane" else "C" for backend in choose(costs, M4).backends) != published
    assert "".join("A" if backend == "ane" else "C" for backend in choose(costs, M4.with_second_launch(0.1)).backends) == published


def test_a_long_program_takes_the_chain_rule_in_linear_time() -> None:
    costs = [both(0.001, 0.0012) for _ in range(3000)]
    choice = choose(costs, M4)
    assert set(choice.backends) == {"ane"}
    assert choice.flips[0] == pytest.approx(3000 * 0.0002 - 0.25)


def test_no_op_is_no_path() -> None:
    assert choose([], M4).total_ms == 0
