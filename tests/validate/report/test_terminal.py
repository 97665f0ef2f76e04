"""What a reader of a terminal gets: words, never colour alone, and never a check that did not run among those that passed."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from coreflow.validate.report.model import Rung, first_cause, worst
from coreflow.validate.report.terminal.ladder import bar
from coreflow.validate.report.terminal.report import render


def test_the_verdict_its_cause_and_the_comparison_are_in_words(make: SimpleNamespace, shown: Callable[..., str]) -> None:
    text = shown(render(make.stage(make.output(), make.failing(), verdict="fail", cause="non-finite")))
    assert "FAIL (non-finite)  said so" in text
    assert "backend lifted, numerics fp16, seeds 0 to 7" in text and "sha256 abababababab" in text
    assert "FAIL finite, rho_rms" in text and "[:, 17]" in text
    assert "1 of 1 packages, 2 outputs, 1,024 elements; 16 samples (8 drawn from seeds, 8 given)" in text


def test_the_tightest_output_comes_first(make: SimpleNamespace, shown: Callable[..., str]) -> None:
    text = shown(render(make.stage(make.output(), make.failing())))
    assert text.index("hidden") < text.index("surface")


def test_a_file_gets_no_escape_codes_and_a_terminal_the_same_words(make: SimpleNamespace, shown: Callable[..., str]) -> None:
    report = make.bundle(make.whole(), make.stage(make.output(), name="other"))
    plain, coloured = shown(render(report)), shown(render(report), colour=True)
    assert "\x1b" not in plain and "\x1b[" in coloured
    assert [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", coloured).splitlines()] == [
        line.rstrip() for line in plain.splitlines()
    ]


@pytest.mark.parametrize("width", [60, 80, 120, 180])
def test_every_width_shows_the_output_and_its_verdict(make: SimpleNamespace, shown: Callable[..., str], width: int) -> None:
    text = shown(render(make.stage(make.output())), width)
    assert "surface" in text and "PASS" in text and "1.02" in text
    assert all(len(line) <= width for line in shown(render(make.bundle(make.whole())), width).splitlines())


def test_the_table_shows_contract_flips_and_values_that_are_not_finite(make: SimpleNamespace, shown: Callable[..., str]) -> None:
    whole_numbers = make.output("ids", dtype="int32", flips=4, rungs={})
    text = shown(render(make.stage(make.output(), whole_numbers, make.output("big", overflowed=2, non_finite=1))))
    row = {line.split()[0]: line for line in reversed(text.splitlines()) if line}  # the table stands before the ladder
    assert "3.0e-04 of 4.0e-03" in row["surface"]
    assert " - " in row["surface"], "margins were not looked at: no number of flips"
    assert " 4 " in row["ids"]
    assert "3 (2 overflow)" in row["big"]


def test_the_ladder_marks_the_largest_jump_by_its_line_and_in_words(make: SimpleNamespace, shown: Callable[..., str]) -> None:
    text = shown(render(make.stage(make.output(budget=5e-5))))
    line = next(line for line in text.splitlines() if "├" in line)
    assert line.index("3") < line.index("━") < line.index("4") and "R4 fp16 arithmetic (2.0e-04 to 6.0e-04)" in line
    assert "━ largest jump" in text
    assert "rungs not run: R1, R2, R2s, R5" in text


@pytest.mark.parametrize(
    ("errors", "order"),
    [
        ({"R1": 1e-7, "R2": 1e-6, "R3": 1e-4, "R4": 1e-3, "R5": 1e-2}, "12345"),
        ({"R3": 1e-4, "R4": 1e-4}, "34"),
        ({"R3": 0.0, "R4": math.nan}, "34"),
        ({"R4": math.inf}, "4"),
    ],
    ids=["rising", "equal", "from 0 to NaN", "infinite"],
)
def test_every_rung_that_ran_is_in_the_bar(make: SimpleNamespace, errors: dict[str, float], order: str) -> None:
    rungs = {name: Rung(relative_rms=error, rho=1.0) for name, error in errors.items()}
    drawn = bar(make.output(rungs=rungs, budget=0.0), -8, 0, 30).plain
    assert "".join(character for character in drawn if character.isdigit()) == order
    assert len(drawn) == 32


def test_a_bar_stands_where_its_logarithm_is(make: SimpleNamespace) -> None:
    drawn = bar(make.output(rungs={"R4": Rung(relative_rms=1e-4, rho=1.0)}, budget=0.0), -8, 0, 41, ascii_only=True).plain
    assert drawn.index("4") == 1 + 20, "1e-4 is half-way from 1e-8 to 1"
    assert drawn.isascii()


def test_a_failure_names_culprits_elements_constants_notes_and_the_command(make: SimpleNamespace, shown: Callable[..., str]) -> None:
    text = shown(render(make.whole()))
    assert "1. rounding: op_0_linear (linear), 40.00 times what is healthy" in text and "layers.3, net.py:30: loses 40 times" in text
    assert "5 of 6" in text and "6. " not in text
    assert "no torch operation gives the same numbers" in text
    assert "non-finite: op_2_linear (linear)\n" in text, "a count of values is no multiple of anything"
    assert "seed 3 [0, 17]" in text and "1.501" in text and "nan" in text
    assert "constant eps of norm_1 is 0 in fp16: 1e-12" in text
    assert "note: softplus was never given a value above 10.4" in text
    assert "replay: coreflow validate replay 'runs/my replay.safetensors'" in text
    assert "60 ops looked at" in text


def test_compute_units_are_compared_or_said_to_be_one(make: SimpleNamespace, shown: Callable[..., str]) -> None:
    text = shown(render(make.whole()))
    assert "rho_rms per compute unit" in text and "cpu_only" in text and "2.50" in text and "not looked at" in text
    assert "only all was run" in shown(render(make.whole(compute_unit_rho={})))
    assert "compute unit" not in shown(render(make.stage(make.output()))), "the lifted backend has none"


def test_parts_that_were_not_checked_are_listed(make: SimpleNamespace, shown: Callable[..., str]) -> None:
    bare = make.failing(worst_elements=(), rungs={})
    text = shown(render(make.stage(bare, verdict="fail")))
    assert "culprits: none named; ops: not looked at" in text
    assert "worst elements of hidden: not looked at" in text
    assert "ladder of hidden: not looked at" in text
    assert "ops not looked at" in text.splitlines()[-1]
    assert "none of 60 stands out" in shown(render(make.stage(bare, verdict="fail", ops=make.ops())))


def test_a_bundle_shows_the_chain_the_tokens_and_the_left_out_samples(make: SimpleNamespace, shown: Callable[..., str]) -> None:
    text = shown(render(make.bundle(make.stage(make.output()), warnings=("weight.bin was changed",))))
    assert "warning: weight.bin was changed" in text
    assert "teacher-forced" in text and "cascaded" in text
    assert "8 of 9 equal (88.9%)" in text and "the reference is undecided: 'a b', token 3" in text
    assert "2 of 3 samples ambiguous" in text and "1 of them not in the ratios" in text and "seed 3 (5 elements differ)" in text


def test_an_incomplete_comparison_never_reads_as_a_pass(make: SimpleNamespace, shown: Callable[..., str]) -> None:
    missing = make.stage(name="other", verdict="incomplete", problems=("golden samples are of another model",))
    report = make.bundle(make.stage(make.output()), missing, verdict="incomplete", problems=("no reference for other",))
    text = shown(render(report))
    assert "INCOMPLETE  all of it" in text and "NOT compared: other" in text and "not judged: no reference for other" in text
    assert "not judged: golden samples are of another model" in text
    assert worst([]) == "incomplete"


def test_hostile_names_are_text(make: SimpleNamespace, shown: Callable[..., str]) -> None:
    text = shown(render(make.hostile()))
    assert "[bold]" in text, "markup of rich is not interpreted"
    assert not {"\x1b", "\x00", "\u202e", "\ud800"} & set(text), "nothing steers the terminal"


def test_causes_and_outcomes_rank_from_worst_to_best() -> None:
    assert worst(["pass", "warn", "incomplete"]) == "incomplete"
    assert worst(["fp16-unsafe", "incomplete"]) == "fp16-unsafe"
    assert first_cause([None, "fp16", "structure"]) == "structure" and first_cause([None]) is None


def test_a_jump_over_a_rung_that_did_not_run_has_the_causes_of_both(make: SimpleNamespace, shown: Callable[..., str]) -> None:
    weights = make.output(rungs={"R3": Rung(relative_rms=1e-3, rho=1.0), "R4": Rung(relative_rms=1.1e-3, rho=1.1)})
    assert "R3 rounding of weights and constants, or translation (1.0e-03)" in shown(render(make.stage(weights)))
    both = replace(weights, rungs={"R2": Rung(relative_rms=1e-8, rho=0.0), **weights.rungs})
    assert "R3 rounding of weights and constants (1.0e-08 to 1.0e-03)" in shown(render(make.stage(both)))
