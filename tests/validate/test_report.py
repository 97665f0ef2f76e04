"""What a reader gets: words on a terminal, numbers in a file."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from coreflow.validate.report.json import to_json, write_report
from coreflow.validate.report.model import (
    AmbiguousSample,
    BundleReport,
    CascadeReport,
    ChainRow,
    Gate,
    OutputReport,
    Report,
    Rung,
    Samples,
    TokenAgreement,
    first_cause,
    worst,
)
from coreflow.validate.report.terminal import render

GOOD = OutputReport(
    name="surface", shape=(1, 64), dtype="float16", elements=512, reference_rms=0.5, relative_rms=6e-4, snr_db=64.0, budget=3e-4,
    rho_rms=1.02, rho_max=1.1, rho_slice=1.3, worst_slice="[:, 17]", max_abs=1e-3, contract=4.5e-3, mean_drift=0.0, std_drift=0.0,
    non_finite=0, overflowed=0,
    flips=0, rungs={"R3": Rung(relative_rms=2e-4, rho=0.5), "R4": Rung(relative_rms=4e-4, rho=1.02)},
    gates=(Gate(name="rho_rms", outcome="pass", value=1.02, limit=1.5),),
)  # fmt: skip
BAD = replace(
    GOOD, name="hidden", rho_rms=math.nan, snr_db=math.nan, max_abs=math.inf, non_finite=3,
    gates=(Gate(name="finite", outcome="fail", value=3, limit=0), Gate(name="rho_rms", outcome="fail", value=math.nan, limit=1.5)),
)  # fmt: skip
AMBIGUOUS = (
    AmbiguousSample(label="seed 3", left_out=True, nearness=0.2, differing=5),
    AmbiguousSample(label="seed 4", left_out=False, nearness=0.5, differing=0),
)


def stage(*outputs: OutputReport, **found: object) -> Report:
    plain = {
        "name": "encoder", "package": "encoder.mlpackage", "digest": "ab" * 32, "weights_digest": None, "backend": "lifted",
        "numerics": "fp16",
        "compute_units": "all", "precision": "fp16", "verdict": worst(each.outcome for each in outputs), "cause": None, "text": "said so",
        "outputs": {each.name: each for each in outputs}, "samples": Samples(seeds=tuple(range(8)), drawn=8, given=8),
        "versions": {"torch": "2.13.0"}, "seconds": 0.5,
    }  # fmt: skip
    return Report(**{**plain, **found})  # type: ignore[arg-type]


def bundle(*stages: Report, **found: object) -> BundleReport:
    cascade = CascadeReport(
        verdict="pass", cause=None, text="", outputs={"decoder.logits": GOOD},
        samples=Samples(seeds=(0,), drawn=2, given=1, ambiguous=AMBIGUOUS),
        rows=(ChainRow(stage="encoder", output="decoder.logits", alone="pass", teacher_forced=1.0, cascaded=1.1, outcome="pass"),),
        tokens=TokenAgreement(sentences=1, tokens=9, equal=8, explained=("'a b', token 3",), unexplained=()), seconds=0.1,
    )  # fmt: skip
    plain = {
        "bundle": "artifacts/demo", "name": "demo", "kind": "energy-flow", "created": "2026-01-01T00:00:00+00:00", "cause": None,
        "text": "all of it",
        "verdict": worst(each.verdict for each in stages), "stages": {each.name: each for each in stages}, "cascade": cascade,
        "versions": {"torch": "2.13.0"}, "seconds": 1.0,
    }  # fmt: skip
    return BundleReport(**{**plain, **found})  # type: ignore[arg-type]


def shown(report: Report | BundleReport, width: int = 180, *, colour: bool = False) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=colour, highlight=False).print(render(report))
    return file.getvalue()


def test_the_verdict_its_cause_and_what_was_compared_are_in_words() -> None:
    text = shown(stage(GOOD, BAD, verdict="fail", cause="non-finite"))
    assert "FAIL (non-finite)  said so" in text
    assert "backend lifted, numerics fp16, seeds 0 to 7" in text and "sha256 abababababab" in text
    assert "FAIL finite, rho_rms" in text and "[:, 17]" in text
    assert "1 of 1 packages, 2 outputs, 1,024 elements; 16 samples (8 drawn from seeds, 8 given)" in text


def test_the_tightest_output_comes_first() -> None:
    text = shown(stage(GOOD, BAD))
    assert text.index("hidden") < text.index("surface")


def test_a_file_gets_no_escape_codes_and_a_terminal_the_same_words() -> None:
    report = bundle(stage(GOOD), verdict="pass")
    plain = shown(report)
    assert "\x1b" not in plain
    coloured = shown(report, colour=True)
    assert "\x1b[" in coloured and "PASS" in coloured


@pytest.mark.parametrize("width", [60, 80, 120, 180])
def test_every_width_shows_the_output_and_its_verdict(width: int) -> None:
    text = shown(stage(GOOD), width)
    assert "surface" in text and "PASS" in text and "1.02" in text
    assert all(len(line) <= width for line in text.splitlines())


def test_a_bundle_shows_the_chain_the_tokens_and_what_was_left_out() -> None:
    text = shown(bundle(stage(GOOD), warnings=("weight.bin was changed",)))
    assert "warning: weight.bin was changed" in text
    assert "teacher-forced" in text and "cascaded" in text
    assert "8 of 9 equal (88.9%)" in text and "the reference is undecided: 'a b', token 3" in text
    assert "2 of 3 samples ambiguous" in text and "1 of them not in the ratios" in text and "seed 3 (5 elements differ)" in text


def test_what_was_not_compared_never_reads_as_a_pass() -> None:
    report = bundle(stage(GOOD), stage(name="other", verdict="incomplete"), verdict="incomplete", problems=("no reference for other",))
    text = shown(report)
    assert "INCOMPLETE  all of it" in text and "NOT compared: other" in text and "not judged: no reference for other" in text
    assert worst([]) == "incomplete"


def test_markup_in_names_is_text() -> None:
    assert "[bold]x[/bold]" in shown(stage(replace(GOOD, name="[bold]x[/bold]"), text="[red]no[/red]"))


def test_json_has_no_nan_and_stable_keys(tmp_path: Path) -> None:
    report = bundle(stage(GOOD, BAD, verdict="fail", cause="non-finite"), cause="non-finite")
    write_report(tmp_path / "report.json", report)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    plain = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert plain == json.loads(json.dumps(to_json(report), allow_nan=False))
    assert (plain["schema_version"], plain["report"], plain["kind"]) == (1, "coreflow validation of a bundle", "energy-flow")
    assert (plain["verdict"], plain["cause"], plain["exit_code"]) == ("fail", "non-finite", 3)
    assert plain["failing_stages"] == ["encoder"]
    output = plain["stages"]["encoder"]["outputs"]["hidden"]
    assert output["rho_rms"] is None and output["max_abs"] is None and output["outcome"] == "fail"
    assert plain["cascade"]["tokens"]["share"] == pytest.approx(8 / 9)
    assert set(output) == {
        "name", "shape", "dtype", "elements", "reference_rms", "relative_rms", "snr_db", "budget", "rho_rms", "rho_max", "rho_slice",
        "worst_slice", "max_abs", "contract", "mean_drift", "std_drift", "non_finite", "overflowed", "flips", "rungs", "gates",
        "outcome", "headroom", "largest_jump", "worst_elements", "plots",
    }  # fmt: skip


def test_causes_and_outcomes_rank_from_worst_to_best() -> None:
    assert worst(["pass", "warn", "incomplete"]) == "incomplete"
    assert worst(["fp16-unsafe", "incomplete"]) == "fp16-unsafe"
    assert first_cause([None, "fp16", "structure"]) == "structure" and first_cause([None]) is None
