"""Every rule by which a verdict gets better or worse, and which rule precedes which."""

import math
from dataclasses import replace
from typing import Any

import pytest

from coreflow.validate.gates.compression import UselessCompression
from coreflow.validate.gates.structure import NO_INPUTS, NO_REFERENCE, Obstacle
from coreflow.validate.gates.tolerance import LIFTED, by_share
from coreflow.validate.judgement import Judgement
from coreflow.validate.report.model import AmbiguousSample, Cause, Gate, Outcome, OutputReport, Samples
from coreflow.validate.verdict import conclude, too_ambiguous, verdict_text


def gate(outcome: Outcome, *, value: float = 2.0, limit: float = 1.0, name: str = "rho_rms", text: str = "") -> Gate:
    return Gate(name=name, outcome=outcome, value=value, limit=limit, text=text)


def output(*gates: Gate, name: str = "y", rho_rms: float = 1.25) -> OutputReport:
    numbers: dict[str, Any] = dict.fromkeys(("reference_rms", "relative_rms", "snr_db", "budget", "rho_max", "rho_slice", "max_abs"), 0.5)
    return OutputReport(
        **numbers,
        name=name,
        shape=(1, 4),
        dtype="float16",
        elements=4,
        rho_rms=rho_rms,
        worst_slice="",
        contract=0.0,
        mean_drift=0.0,
        std_drift=0.0,
        non_finite=0,
        overflowed=0,
        flips=0,
        rungs={},
        gates=gates,
    )


def outputs(*outcomes: Outcome) -> dict[str, OutputReport]:
    return {f"y{place}": output(gate(outcome), name=f"y{place}") for place, outcome in enumerate(outcomes)}


def ambiguous(left_out: int, total: int) -> Samples:
    samples = tuple(
        AmbiguousSample(label=f"seed {seed}", left_out=seed < left_out, nearness=0.5, differing=1) for seed in range(left_out + 1)
    )
    return Samples(seeds=tuple(range(total)), drawn=total, given=0, ambiguous=samples)


UNDECIDED = ambiguous(left_out=9, total=10)
ENOUGH = ambiguous(left_out=4, total=12)
SWOLLEN = UselessCompression(text="w saves nothing", in_vain=False)
IN_VAIN = replace(SWOLLEN, in_vain=True)

# rule -> findings, cause of the failing outputs, and the verdict
RULES: dict[str, tuple[dict[str, Any], Cause | None, tuple[Outcome, Cause | None]]] = {
    "all outputs pass": ({"outputs": outputs("pass", "pass")}, None, ("pass", None)),
    "the worst counts: warn": ({"outputs": outputs("pass", "warn")}, None, ("warn", None)),
    "the worst counts: incomplete before warn": ({"outputs": outputs("incomplete", "warn")}, None, ("incomplete", None)),
    "the worst counts: fp16-unsafe before incomplete": ({"outputs": outputs("fp16-unsafe", "incomplete")}, None, ("fp16-unsafe", None)),
    "the worst counts: fail before all": ({"outputs": outputs("fail", "fp16-unsafe", "pass")}, "fp16", ("fail", "fp16")),
    "no outputs: incomplete": ({"outputs": {}, "samples": UNDECIDED}, None, ("incomplete", None)),
    "too ambiguous: a pass is incomplete": ({"samples": UNDECIDED}, None, ("incomplete", None)),
    "too ambiguous: so is a warning": ({"outputs": outputs("warn"), "samples": UNDECIDED}, None, ("incomplete", None)),
    "too ambiguous: so is fp16-unsafe": ({"outputs": outputs("fp16-unsafe"), "samples": UNDECIDED}, None, ("incomplete", None)),
    "too ambiguous: a failure stays": ({"outputs": outputs("fail"), "samples": UNDECIDED}, "weights", ("fail", "weights")),
    "enough decided samples change nothing": ({"samples": ENOUGH}, None, ("pass", None)),
    "samples of another model: incomplete": ({"foreign_samples": "other golden samples"}, None, ("incomplete", None)),
    "samples of another model: a failure stays": (
        {"outputs": outputs("fail"), "foreign_samples": "other golden samples"}, "device", ("fail", "device"),
    ),
    "R2 not run: a pass is a warning": ({"missing_fp32": "it does not convert"}, None, ("warn", None)),
    "R2 not run: fp16-unsafe stays": ({"outputs": outputs("fp16-unsafe"), "missing_fp32": "no"}, None, ("fp16-unsafe", None)),
    "R2 not run: a failure stays": ({"outputs": outputs("fail"), "missing_fp32": "no"}, "fp16", ("fail", "fp16")),
    "R2 not run, too ambiguous: incomplete": ({"missing_fp32": "no", "samples": UNDECIDED}, None, ("incomplete", None)),
    "a weight that grew: a pass is a warning": ({"compression": SWOLLEN}, None, ("warn", None)),
    "all weights grew: a pass is a failure of translation": ({"compression": IN_VAIN}, None, ("fail", "translation")),
    "all weights grew: so is a warning": ({"outputs": outputs("warn"), "compression": IN_VAIN}, None, ("fail", "translation")),
    "all weights grew, R2 not run: a failure": ({"compression": IN_VAIN, "missing_fp32": "no"}, None, ("fail", "translation")),
    "all weights grew: fp16-unsafe says more": ({"outputs": outputs("fp16-unsafe"), "compression": IN_VAIN}, None, ("fp16-unsafe", None)),
    "all weights grew: incomplete says more": ({"compression": IN_VAIN, "samples": UNDECIDED}, None, ("incomplete", None)),
    "all weights grew: a failure keeps its cause": ({"outputs": outputs("fail"), "compression": IN_VAIN}, "fp16", ("fail", "fp16")),
    "other ops alone change nothing": ({"other_ops": "the saved program has 1 relu"}, None, ("pass", None)),
    "compute units that did not open change nothing": ({"missing_units": ("no engine",)}, None, ("pass", None)),
    "a cause belongs to a failure": ({"outputs": outputs("warn")}, "fp16", ("warn", None)),
}  # fmt: skip


def judgement(**findings: Any) -> Judgement:
    return Judgement(**{"outputs": outputs("pass"), "tolerance": LIFTED, **findings})


@pytest.mark.parametrize("rule", RULES)
def test_rules_of_a_verdict(rule: str) -> None:
    findings, cause, expected = RULES[rule]
    verdict = conclude(judgement(**findings), cause)
    assert (verdict.outcome, verdict.cause) == expected


@pytest.mark.parametrize(
    ("obstacle", "outcome", "text"),
    [
        (Obstacle(cause="structure", problems=("x is float16", "y is int32")), "fail", "x is float16; y is int32"),
        (Obstacle(cause="translation", problems=("merged",)), "fail", "merged"),
        (NO_INPUTS, "incomplete", "no inputs: nothing was compared"),
        (NO_REFERENCE, "incomplete", "no reference: nothing was compared"),
    ],
    ids=["structure", "translation", "no inputs", "no reference"],
)
def test_an_obstacle_fails_where_somebody_is_at_fault(obstacle: Obstacle, outcome: Outcome, text: str) -> None:
    verdict = conclude(obstacle)
    assert (verdict.outcome, verdict.cause, verdict.text, verdict.problems) == (outcome, obstacle.cause, text, obstacle.problems)


def test_notes_are_in_the_order_of_their_gravity_and_the_first_is_the_text_where_outputs_are_fine() -> None:
    verdict = conclude(
        judgement(
            compression=SWOLLEN, missing_fp32="it does not convert", other_ops="the saved program has 1 relu", missing_units=("no GPU",)
        )
    )
    assert verdict.text == "w saves nothing"
    assert verdict.notes == (
        "w saves nothing",
        "R2 was not run, so that small errors of translation would not be seen: it does not convert",
        "the saved program has 1 relu, compared with a fresh conversion of the reference",
        "no GPU",
    )
    assert conclude(judgement(missing_fp32="it does not convert")).text.startswith("R2 was not run")


def test_samples_that_cannot_carry_a_verdict_are_its_text_and_a_problem() -> None:
    verdict = conclude(judgement(samples=UNDECIDED, foreign_samples="other golden samples", compression=SWOLLEN))
    assert verdict.text == too_ambiguous(1, 10) and verdict.problems == (verdict.text,)
    failure = conclude(judgement(outputs=outputs("fail"), samples=UNDECIDED), "fp16")
    assert failure.text.startswith("y0: rho_rms") and failure.problems == (too_ambiguous(1, 10),)


@pytest.mark.parametrize(
    ("kept", "total", "is_enough"),
    [(0, 0, True), (2, 2, True), (8, 64, True), (4, 8, True), (4, 9, False), (3, 5, False), (0, 1, False)],
)
def test_eight_clear_samples_are_enough_or_half_of_at_least_four(kept: int, total: int, is_enough: bool) -> None:
    assert (too_ambiguous(kept, total) == "") == is_enough


class TestText:
    def test_a_pass_tells_the_largest_ratio_and_whose_error_it_is_divided_by(self) -> None:
        both = {"a": output(gate("pass"), rho_rms=0.9), "b": output(gate("pass"), rho_rms=1.25)}
        assert verdict_text("pass", None, both, LIFTED) == "errors are at most 1.25 times those of torch's own fp16; 1.5 is the limit"
        assert "times a heuristic for networks as deep;" in verdict_text("pass", None, both, LIFTED, budget="heuristic")
        assert verdict_text("pass", None, both, by_share(0.6)) == "errors are at most 0.5 of the outputs; 0.6 is the limit"

    def test_a_failure_tells_the_gate_that_is_exceeded_most_at_the_worst_output(self) -> None:
        failing = {
            "a": output(gate("fail", value=2), name="a"),
            "b": output(gate("fail", value=3), gate("fail", value=9, name="rho_max"), gate("warn", value=99), name="b"),
            "c": output(gate("pass", value=0.5), name="c"),
        }
        assert verdict_text("fail", None, failing, LIFTED) == "b: rho_max 9, above its limit of 1 (and 1 more of 3 outputs)"
        assert verdict_text("fail", "device", failing, LIFTED).endswith("; the program itself is right: the device is off")

    def test_a_gates_own_words_come_first_and_a_slice_has_its_place(self) -> None:
        worded = {"y": output(gate("fail", name="finite", value=3, limit=0, text="3 values are NaN"))}
        assert verdict_text("fail", "non-finite", worded, LIFTED) == "y: 3 values are NaN"
        at_place = {"y": output(gate("fail", name="rho_slice", value=5, limit=3, text="[:, 17]"))}
        assert verdict_text("fail", None, at_place, LIFTED) == "y: rho_slice 5 at [:, 17], above its limit of 3"

    def test_a_ratio_that_is_no_number_does_not_hide_the_gate(self) -> None:
        unknown = {"y": output(gate("fail", value=math.nan))}
        assert verdict_text("fail", None, unknown, LIFTED) == "y: rho_rms nan, above its limit of 1"
