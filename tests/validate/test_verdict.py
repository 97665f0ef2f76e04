"""Every rule by which the verdict on a package, a chain or a bundle gets better or worse, and which rule precedes which."""

import math
from dataclasses import replace
from typing import Any

import pytest

from coreflow.validate.gates.compression import UselessCompression
from coreflow.validate.gates.structure import NO_INPUTS, NO_REFERENCE, Obstacle
from coreflow.validate.gates.tolerance import LIFTED, by_share
from coreflow.validate.judgement import NO_SAMPLES, Judgement
from coreflow.validate.report.model import AmbiguousSample, Cause, ChainReport, Gate, Outcome, OutputReport, Report, Samples, TokenAgreement
from coreflow.validate.verdict import conclude, conclude_bundle, conclude_chain, too_ambiguous, verdict_text


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
    "a value that a conversion freezes: a pass is a warning": ({"frozen_reads": "model.py:12"}, None, ("warn", None)),
    "a value that a conversion freezes: a failure stays": (
        {"outputs": outputs("fail"), "frozen_reads": "model.py:12"}, "fp16", ("fail", "fp16"),
    ),
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


OTHER_TOKENS = ("'a b', token 1", "'c', token 0")
NOT_FINITE = {"y0": output(gate("fail", name="finite"), name="y0")}
CLEAR, UNCLEAR = (True,) * 9, (False,) * 9 + (True,)

# rule -> outputs, unexplained tokens, kept samples, backend, and the verdict
CHAIN_RULES: dict[str, tuple[dict[str, OutputReport], tuple[str, ...], tuple[bool, ...], str, tuple[Outcome, Cause | None]]] = {
    "all outputs pass": (outputs("pass", "pass"), (), CLEAR, "lifted", ("pass", None)),
    "the worst counts": (outputs("pass", "warn", "fp16-unsafe"), (), CLEAR, "lifted", ("fp16-unsafe", None)),
    "a failure in the interpreter is of fp16": (outputs("fail"), (), CLEAR, "lifted", ("fail", "fp16")),
    "a failure in Core ML is the device's": (outputs("fail"), (), CLEAR, "coreml", ("fail", "device")),
    "values that are not finite say more": (NOT_FINITE, (), CLEAR, "coreml", ("fail", "non-finite")),
    "other tokens: a pass is a failure": (outputs("pass"), OTHER_TOKENS, CLEAR, "lifted", ("fail", "fp16")),
    "other tokens: so is incomplete": (outputs("pass"), OTHER_TOKENS, UNCLEAR, "coreml", ("fail", "device")),
    "too ambiguous: a pass is incomplete": (outputs("pass"), (), UNCLEAR, "lifted", ("incomplete", None)),
    "too ambiguous: so is fp16-unsafe": (outputs("fp16-unsafe"), (), UNCLEAR, "lifted", ("incomplete", None)),
    "too ambiguous: a failure stays": (outputs("fail"), (), UNCLEAR, "lifted", ("fail", "fp16")),
}


def agreement(unexplained: tuple[str, ...] = ()) -> TokenAgreement:
    return TokenAgreement(sentences=2, tokens=9, equal=7, explained=(), unexplained=unexplained)


@pytest.mark.parametrize("rule", CHAIN_RULES)
def test_rules_of_the_verdict_on_a_chain(rule: str) -> None:
    outputs, unexplained, kept, backend, expected = CHAIN_RULES[rule]
    verdict = conclude_chain(outputs, agreement(unexplained), kept, LIFTED, backend)
    assert (verdict.outcome, verdict.cause) == expected
    assert verdict.problems == ((too_ambiguous(1, 10),) if kept == UNCLEAR else ())


def test_the_text_of_a_chain_is_its_first_other_token_or_its_worst_output() -> None:
    other = conclude_chain(outputs("fail"), agreement(OTHER_TOKENS), UNCLEAR, LIFTED, "lifted")
    assert other.text == "other tokens than torch, which is sure of its own: 'a b', token 1"
    assert conclude_chain(outputs("fail"), agreement(), UNCLEAR, LIFTED, "lifted").text == "y0: rho_rms 2, above its limit of 1"
    assert conclude_chain(outputs("warn"), agreement(), UNCLEAR, LIFTED, "lifted").text == too_ambiguous(1, 10)


def stages(*verdicts: tuple[Outcome, Cause | None]) -> dict[str, Report]:
    names = ("name", "package", "digest", "backend", "numerics", "compute_units", "precision")
    fixed: dict[str, Any] = {**dict.fromkeys(names, ""), "weights_digest": None, "outputs": {}, "samples": NO_SAMPLES, "versions": {}}
    return {
        f"s{place}": Report(**fixed, verdict=outcome, cause=cause, text=f"{outcome} of a stage", seconds=0.0)
        for place, (outcome, cause) in enumerate(verdicts)
    }


def chain(outcome: Outcome, cause: Cause | None = None) -> ChainReport:
    text = f"{outcome} of the chain"
    return ChainReport(verdict=outcome, cause=cause, text=text, outputs={}, rows=(), tokens=agreement(), samples=NO_SAMPLES, seconds=0.0)


PASS: tuple[Outcome, Cause | None] = ("pass", None)
UNUSABLE, CHANGED = ("no reference for s1",), ("s0 was changed",)
REFUSED = "s0 was changed (what it computes is within tolerance). Export again, or accept the files with --unsealed"

# rule -> stages, chain, problems, changes, and outcome, cause and text
BUNDLE_RULES: dict[
    str, tuple[dict[str, Report], ChainReport | None, tuple[str, ...], tuple[str, ...], tuple[Outcome, Cause | None, str]]
] = {
    "all pass": (stages(PASS, PASS), None, (), (), ("pass", None, "2 stages are within fp16 tolerance of torch")),
    "all pass, with a chain": (
        stages(PASS), chain("pass"), (), (), ("pass", None, "1 stages and the cascade are within fp16 tolerance of torch"),
    ),
    "the worst counts": (
        stages(PASS, ("warn", None), ("fp16-unsafe", None)), None, (), (), ("fp16-unsafe", None, "s2: fp16-unsafe of a stage"),
    ),
    "all that are to blame, and the cause that explains most": (
        stages(("fail", "fp16"), PASS, ("fail", "weights")), None, (), (), ("fail", "weights", "s0: fail of a stage; s2: fail of a stage"),
    ),
    "a chain fails because a stage does": (
        stages(("fail", "fp16")), chain("fail", "non-finite"), (), (), ("fail", "fp16", "s0: fail of a stage"),
    ),
    "a chain that warns beside a stage is named": (
        stages(("warn", None)), chain("warn"), (), (), ("warn", None, "s0: warn of a stage; cascade: warn of the chain"),
    ),
    "a chain may fail alone": (stages(PASS), chain("fail", "device"), (), (), ("fail", "device", "cascade: fail of the chain")),
    "a problem: a pass is incomplete": (stages(PASS), chain("pass"), UNUSABLE, (), ("incomplete", None, UNUSABLE[0])),
    "a problem: so is a warning": (stages(("warn", None)), None, UNUSABLE, (), ("incomplete", None, UNUSABLE[0])),
    "a problem beside an incomplete stage": (
        stages(("incomplete", None)), None, UNUSABLE, (), ("incomplete", None, "s0: incomplete of a stage"),
    ),
    "a problem: a failure stays": (stages(("fail", "fp16")), None, UNUSABLE, (), ("fail", "fp16", "s0: fail of a stage")),
    "changed files: a pass is a failure of structure": (stages(PASS), chain("pass"), (), CHANGED, ("fail", "structure", REFUSED)),
    "changed files: so is a warning": (stages(("warn", None)), None, (), CHANGED, ("fail", "structure", REFUSED)),
    "changed files: a failure keeps its cause": (stages(("fail", "fp16")), None, (), CHANGED, ("fail", "fp16", "s0: fail of a stage")),
    "changed files: incomplete says more": (stages(PASS), None, UNUSABLE, CHANGED, ("incomplete", None, UNUSABLE[0])),
    "no stages: incomplete": ({}, None, (), (), ("incomplete", None, "")),
}  # fmt: skip


@pytest.mark.parametrize("rule", BUNDLE_RULES)
def test_rules_of_the_verdict_on_a_bundle(rule: str) -> None:
    stages, chain, problems, changes, expected = BUNDLE_RULES[rule]
    verdict = conclude_bundle(stages, chain, problems, changes)
    assert (verdict.outcome, verdict.cause, verdict.text) == expected
    assert verdict.problems == problems


@pytest.mark.parametrize(
    ("kept", "total", "is_enough"),
    [(0, 0, True), (2, 2, True), (8, 64, True), (4, 8, True), (4, 9, False), (3, 5, False), (0, 1, False)],
)
def test_eight_clear_samples_are_enough_or_half_of_at_least_four(kept: int, total: int, is_enough: bool) -> None:
    assert (too_ambiguous(kept, total) == "") == is_enough


def told(findings: dict[str, Any], cause: Cause) -> str:
    return conclude(judgement(**findings), cause).text


class TestText:
    def test_a_pass_tells_the_largest_ratio_and_whose_error_it_is_divided_by(self) -> None:
        both = {"a": output(gate("pass"), rho_rms=0.9), "b": output(gate("pass"), rho_rms=1.25)}
        assert verdict_text("pass", None, both, LIFTED) == "errors are at most 1.25 times those of torch's own fp16; 1.5 is the limit"
        assert "1.25 times those of drawn rounding;" in verdict_text("pass", None, both, LIFTED, budget="drawn rounding")
        assert verdict_text("pass", None, both, by_share(0.6)) == "errors are at most 0.5 of the outputs; 0.6 is the limit"

    def test_a_failure_tells_the_gate_that_is_exceeded_most_at_the_worst_output(self) -> None:
        failing = {
            "a": output(gate("fail", value=2), name="a"),
            "b": output(gate("fail", value=3), gate("fail", value=9, name="rho_max"), gate("warn", value=99), name="b"),
            "c": output(gate("pass", value=0.5), name="c"),
        }
        assert verdict_text("fail", None, failing, LIFTED) == "b: rho_max 9, above its limit of 1 (and 1 more of 3 outputs)"
        assert verdict_text("fail", "device", failing, LIFTED).endswith("; the program itself is right: the device is off")

    def test_a_compressed_package_that_was_not_meant_to_be_is_told_of_its_limit(self) -> None:
        findings = {"outputs": outputs("fail"), "compressed": "lut_to_dense 4-bit"}
        assert "are compressed (lut_to_dense 4-bit). A package that is meant to differ is judged by --within" in told(findings, "weights")
        assert "--within" not in told(findings, "fp16")
        assert "--within" not in told({**findings, "tolerance": by_share(0.05)}, "weights"), "that is how it was judged"

    def test_other_weights_than_the_exported_ones_come_first(self) -> None:
        findings = {"outputs": outputs("fail"), "foreign_weights": "other weights"}
        assert told(findings, "weights").startswith("other weights; y0: rho_rms 2, above its limit of 1; wide arithmetic does not help")
        assert conclude(judgement(**findings), "weights").problems == ("other weights",)

    def test_a_gates_own_words_come_first_and_a_slice_has_its_place(self) -> None:
        worded = {"y": output(gate("fail", name="finite", value=3, limit=0, text="3 values are NaN"))}
        assert verdict_text("fail", "non-finite", worded, LIFTED) == "y: 3 values are NaN"
        at_place = {"y": output(gate("fail", name="rho_slice", value=5, limit=3, text="[:, 17]"))}
        assert verdict_text("fail", None, at_place, LIFTED) == "y: rho_slice 5 at [:, 17], above its limit of 3"

    def test_a_ratio_that_is_no_number_does_not_hide_the_gate(self) -> None:
        unknown = {"y": output(gate("fail", value=math.nan))}
        assert verdict_text("fail", None, unknown, LIFTED) == "y: rho_rms nan, above its limit of 1"


def test_weights_that_are_the_references_are_not_called_wrong() -> None:
    failing = judgement(outputs=outputs("fail"), has_own_weights=True)
    assert "the weights are the reference's" in conclude(failing, "weights").text
    assert "weights of the saved program are wrong" in conclude(judgement(outputs=outputs("fail")), "weights").text
    assert "the weights are" not in conclude(failing, "fp16").text
