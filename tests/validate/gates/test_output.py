"""What an output must meet, gate by gate, on errors made by hand."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coreflow.models.arrays import Array
from coreflow.models.spec import TensorSpec
from coreflow.validate.gates.comparison import Comparison
from coreflow.validate.gates.conditions import translation_gate
from coreflow.validate.gates.output import judge_output
from coreflow.validate.gates.structure import structure_problems
from coreflow.validate.gates.tolerance import DEVICE, LIFTED, Tolerance
from coreflow.validate.report.model import OutputReport

SHAPE = (12, 1, 8, 16)
NOISE = 5e-4


def compare(change: Callable[[Array, Array, Array], object] = lambda *_: None, tolerance: Tolerance = LIFTED) -> OutputReport:
    """A healthy comparison after ``change(reference, simulated, actual)``."""
    random = np.random.default_rng(0)
    reference = random.standard_normal(SHAPE)
    simulated, actual = (reference + NOISE * random.standard_normal(SHAPE) for _ in range(2))
    change(reference, simulated, actual)
    labels = tuple(f"seed {seed}" for seed in range(len(reference)))
    kept = np.ones(len(reference), bool)
    return judge_output(
        Comparison(name="y", spec=TensorSpec(SHAPE[1:]), reference=reference, simulated=simulated, actual=actual, labels=labels, kept=kept),
        tolerance,
        {"R4": NOISE},
    )


def add(place: Any, amount: float) -> Callable[[Array, Array, Array], object]:
    def change(reference: Array, simulated: Array, actual: Array) -> None:
        actual[place] += amount

    return change


def set_to(side: int, place: Any, value: float) -> Callable[..., object]:
    def change(*arrays: Array) -> None:
        arrays[side][place] = value

    return change


def worsen(factor: float) -> Callable[[Array, Array, Array], object]:
    def change(reference: Array, simulated: Array, actual: Array) -> None:
        actual[:] = reference + factor * (actual - reference)

    return change


def test_healthy_noise_passes_every_gate() -> None:
    report = compare()
    assert report.outcome == "pass"
    assert report.rho_rms == pytest.approx(1, abs=0.05)
    assert [gate.name for gate in report.gates] == ["finite", "rho_rms", "rho_max", "rho_slice", "ceiling", "contract"]
    assert 0 < report.headroom < 1


@pytest.mark.parametrize(
    ("change", "gates"),
    [
        (worsen(1.8), {"rho_rms"}),
        (add((3, 0, 2, 5), 15 * NOISE), {"rho_max"}),
        (add((slice(None), 0, slice(None), 5), 4 * NOISE), {"rho_slice"}),
        (add((4,), 4 * NOISE), {"rho_slice"}),
        (add((...,), 0.02), {"rho_rms", "rho_max", "rho_slice", "contract"}),
        (set_to(2, (0, 0, 0, 0), math.nan), {"finite", "rho_rms", "rho_max", "rho_slice", "contract"}),
        (set_to(2, (0, 0, 0, 0), math.inf), {"finite", "rho_rms", "rho_max", "rho_slice", "contract"}),
    ],
    ids=["everything a little", "one element", "a channel", "a sample", "a bias", "a nan", "an infinity"],
)
def test_the_gate_that_a_fault_breaks_says_so(change: Callable[..., object], gates: set[str]) -> None:
    report = compare(change)
    assert report.outcome == "fail"
    assert gates <= {gate.name for gate in report.failed_gates}
    if len(gates) == 1:
        assert report.failed_gates[0].name in gates and report.headroom < 0


def test_the_worst_slice_is_named_in_the_tensors_own_axes() -> None:
    assert compare(add((slice(None), 0, slice(None), 5), 4 * NOISE)).worst_slice == "[:, :, 5]"
    assert compare(add((4,), 4 * NOISE)).worst_slice == "seed 4"


def test_a_device_warns_between_twice_and_four_times_the_budget() -> None:
    assert compare(worsen(1.8), DEVICE).outcome == "pass"
    warned = compare(worsen(3), DEVICE)
    assert warned.outcome == "warn" and [gate.name for gate in warned.failed_gates] == ["rho_rms"]
    assert compare(worsen(5), DEVICE).outcome == "fail"


def test_values_beyond_fp16_are_an_overflow_and_not_a_fault() -> None:
    def overflow(reference: Array, simulated: Array, actual: Array) -> None:
        reference[0, 0, 0, 0], simulated[0, 0, 0, 0], actual[0, 0, 0, 0] = 1e5, math.inf, math.inf

    gate = compare(overflow).gates[0]
    assert (gate.name, gate.outcome) == ("finite", "fp16-unsafe") and "65504" in gate.text


def test_an_infinity_of_the_reference_must_be_the_packages_too() -> None:
    def infinite(reference: Array, simulated: Array, actual: Array) -> None:
        reference[0, 0, 0, 0] = simulated[0, 0, 0, 0] = actual[0, 0, 0, 0] = -math.inf

    assert compare(infinite).outcome == "pass"

    def other(reference: Array, simulated: Array, actual: Array) -> None:
        infinite(reference, simulated, actual)
        actual[0, 0, 0, 0] = -65504

    assert compare(other).failed_gates[0].name == "finite"


@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_a_module_that_fp16_cannot_execute_never_passes(spoilt: float) -> None:
    report = compare(set_to(1, (0, 0, 0, 0), spoilt))
    assert report.outcome == "fp16-unsafe"
    assert [gate.name for gate in report.failed_gates] == ["ceiling"]


def test_a_module_that_loses_too_much_in_fp16_is_unsafe_however_well_the_package_does() -> None:
    def coarse(reference: Array, simulated: Array, actual: Array) -> None:
        simulated[:] = reference + 0.02 * (simulated - reference) / NOISE

    assert compare(coarse).outcome == "fp16-unsafe"


@pytest.mark.parametrize("scale", [1e-3, 1e3], ids=["small", "large"])
@pytest.mark.parametrize(("share", "outcome"), [(0.009, "pass"), (0.011, "fail")], ids=["within", "beyond"])
def test_the_contract_is_a_share_of_the_output_however_small_or_large_that_is(scale: float, share: float, outcome: str) -> None:
    def scaled(reference: Array, simulated: Array, actual: Array) -> None:
        actual[:] = reference * (1 + share)  # an error that only the contract gate measures against the output
        for array in (reference, simulated, actual):
            np.multiply(array, scale, out=array)

    gates = {gate.name: gate for gate in compare(scaled).gates}
    assert gates["contract"].outcome == outcome
    assert gates["contract"].value == pytest.approx(share * scale, rel=0.05)


def test_an_error_that_fp16_makes_too_breaks_the_contract_without_being_the_packages_fault() -> None:
    strict = replace(LIFTED, contract=NOISE / 2)
    report = compare(tolerance=strict)
    assert [(gate.name, gate.outcome) for gate in report.failed_gates] == [("contract", "fp16-unsafe")]
    assert report.outcome == "fp16-unsafe"
    worse = compare(worsen(1.8), strict)
    assert {(gate.name, gate.outcome) for gate in worse.failed_gates} == {
        ("contract", "fp16-unsafe"),
        ("rho_rms", "fail"),
    } and worse.outcome == "fail"


def test_exact_outputs_have_half_a_roundoff_as_their_budget() -> None:
    def copied(reference: Array, simulated: Array, actual: Array) -> None:
        simulated[:] = actual[:] = reference

    report = compare(copied)
    assert report.outcome == "pass" and report.rho_rms == 0
    assert report.budget == pytest.approx(0.5 * 2**-11 * report.reference_rms)
    assert report.snr_db == math.inf


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda reference, *_: reference.fill(3.0), "one value everywhere"),
        (lambda reference, *_: reference.__setitem__(slice(None), reference[:1]), "the same for all"),
    ],
    ids=["constant", "deaf"],
)
def test_a_reference_that_compares_nothing_is_incomplete(change: Callable[..., object], said: str) -> None:
    def both(reference: Array, simulated: Array, actual: Array) -> None:
        change(reference)
        simulated[:] = actual[:] = reference

    report = compare(both)
    assert report.outcome == "incomplete" and said in report.failed_gates[0].text


def test_few_elements_are_allowed_more() -> None:
    reference = np.random.default_rng(1).standard_normal((8, 1))
    noise = np.random.default_rng(2).standard_normal((8, 1)) * NOISE
    few = Comparison(
        name="y", spec=TensorSpec((1,)), reference=reference, simulated=reference + noise, actual=reference + 3 * noise[::-1],
        labels=("seed",) * 8, kept=np.ones(8, bool),
    )  # fmt: skip
    report = judge_output(few, LIFTED, {})
    assert report.outcome == "pass" and report.rho_rms == pytest.approx(3)


@pytest.mark.parametrize(("flipped", "outcome"), [(0, "pass"), (1, "fail")])
def test_whole_numbers_must_be_equal(flipped: int, outcome: str) -> None:
    reference = np.arange(24).reshape(8, 1, 3).astype(np.int32)
    actual = reference.copy()
    actual[0, 0, 0] += flipped
    comparison = Comparison(
        name="ids",
        spec=TensorSpec((1, 3), "int32"),
        reference=reference,
        simulated=reference,
        actual=actual,
        labels=("seed",) * 8,
        kept=np.ones(8, bool),
    )
    report = judge_output(comparison, LIFTED, {})
    assert (report.outcome, report.flips) == (outcome, flipped)


X, Y = TensorSpec((1, 4)), TensorSpec((1, 8))


@pytest.mark.parametrize(
    ("actual", "said"),
    [
        ({"a": X, "b": Y}, None),
        ({"b": Y, "a": X}, "a, b in this order"),
        ({"a": X}, "a, b in this order"),
        ({"a": X, "b_1": Y}, "a, b in this order"),
        ({"a": X, "b": TensorSpec((8,))}, "'b' has shape [8]"),
        ({"a": X, "b": TensorSpec((1, 8), "float32")}, "'b' is float32; float16 is right"),
    ],
    ids=["same", "order", "missing", "renamed", "rank", "dtype"],
)
def test_names_order_rank_shape_and_dtype_are_exact(actual: dict[str, TensorSpec], said: str | None) -> None:
    problems = structure_problems({"a": X, "b": Y}, actual, "output")
    assert not problems if said is None else said in problems[0]


def test_without_names_outputs_are_compared_by_place() -> None:
    assert not structure_problems({"0": X, "1": Y}, {"a": X, "b": Y}, "output", names_known=False)
    assert structure_problems({"0": X, "1": Y}, {"a": X}, "output", names_known=False)
    assert structure_problems({"0": X, "1": Y}, {"a": Y, "b": X}, "output", names_known=False)


@pytest.mark.parametrize(
    ("error", "noise", "budget", "outcome"),
    [
        (9e-7, 0.0, 5e-4, "pass"),
        (2e-6, 3e-6, 5e-4, "pass"),
        (2e-6, 0.0, 5e-4, "warn"),
        (4.9e-5, 0.0, 5e-4, "warn"),
        (5.1e-5, 0.0, 5e-4, "fail"),
        (2e-6, 0.0, 1e-6, "fail"),  # of a package in fp32
        (math.nan, 0.0, 5e-4, "fail"),
    ],
)
def test_what_every_conversion_has_warns_below_a_tenth_of_the_budget(error: float, noise: float, budget: float, outcome: str) -> None:
    assert translation_gate(error, noise, budget).outcome == outcome
