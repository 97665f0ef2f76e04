"""Two reports of the same thing: what got worse, by rules that are written down."""

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from coreflow.models.errors import InputError
from coreflow.validate.report.diff import GROWTH, ReportDiff, compare, direction_of
from coreflow.validate.report.json import to_json
from coreflow.validate.report.model import AcceptedDifference, Gate, Samples, TokenAgreement
from coreflow.validate.report.terminal.diff import render_diff


def changed(old: Any, new: Any) -> ReportDiff:
    return compare(to_json(old), to_json(new))


def worse(diff: ReportDiff) -> set[str]:
    return {change.what for change in diff.worse}


def test_a_report_is_no_worse_than_itself(make: SimpleNamespace) -> None:
    for report in (make.stage(make.output(), make.failing()), make.whole(), make.bundle(make.whole())):
        diff = changed(report, report)
        assert (diff.changes, diff.exit_code) == ((), 0)
        assert len(diff.outputs) >= 2 and not any(output.worse for output in diff.outputs)


@pytest.mark.parametrize(
    ("before", "after", "is_worse"),
    [
        (1.00, 1.09, False),
        (1.00, 1.11, True),
        (0.10, 0.14, False),  # 40 % more, but a step of 0.04
        (0.10, 0.16, True),
        (10.0, 10.9, False),
        (10.0, 11.1, True),
        (1.0, math.nan, True),
        (1.0, math.inf, True),
        (math.nan, math.nan, False),
        (math.nan, 1.0, False),
        (1.2, 1.0, False),
    ],
)
def test_rho_rms_is_worse_when_it_grew_by_a_tenth_and_by_a_step(make: SimpleNamespace, before: float, after: float, is_worse: bool) -> None:
    diff = changed(make.stage(make.output(rho_rms=before)), make.stage(make.output(rho_rms=after)))
    assert (worse(diff) == {"surface: rho_rms"}) is is_worse and diff.exit_code == is_worse
    assert diff.outputs[0].worse is is_worse


def test_single_draws_have_wider_limits(make: SimpleNamespace) -> None:
    old = make.stage(make.output(rho_max=2.0, rho_slice=2.0))
    assert changed(old, make.stage(make.output(rho_max=2.9, rho_slice=2.9))).exit_code == 0
    assert worse(changed(old, make.stage(make.output(rho_max=3.1, rho_slice=3.1)))) == {"surface: rho_max", "surface: rho_slice"}
    assert set(GROWTH) == {"rho_rms", "rho_max", "rho_slice"}


@pytest.mark.parametrize("key", ["flips", "non_finite", "overflowed"])
def test_one_more_flip_or_value_that_is_not_finite_is_worse(make: SimpleNamespace, key: str) -> None:
    few, many = (make.stage(make.output(**{key: count})) for count in (1, 2))
    assert worse(changed(few, many)) == {f"surface: {key}"}
    assert [change.direction for change in changed(many, few).changes] == ["better"]


@pytest.mark.parametrize(
    ("before", "after", "direction"),
    [
        ("pass", "warn", "worse"),
        ("pass", "incomplete", "worse"),
        ("incomplete", "fail", "worse"),
        ("fp16-unsafe", "fail", "worse"),
        ("fail", "pass", "better"),
        ("fail", "incomplete", "changed"),  # nobody knows
        ("fp16-unsafe", "incomplete", "changed"),
    ],
)
def test_an_outcome_that_is_no_longer_checked_is_no_improvement(make: SimpleNamespace, before: str, after: str, direction: str) -> None:
    assert direction_of(before, after) == direction

    def report(outcome: Any) -> Any:
        return make.stage(make.output(gates=(Gate(name="rho_rms", outcome=outcome, value=2.0, limit=1.5),)))

    directions = {change.what: change.direction for change in changed(report(before), report(after)).changes}
    assert directions == {"verdict": direction, "surface: rho_rms": direction}


def test_a_check_that_passed_and_is_gone_is_worse(make: SimpleNamespace) -> None:
    old = make.stage(make.output())
    new = make.stage(make.output(gates=make.output().gates[:1]))
    assert worse(changed(old, new)) == {"surface: contract"}
    assert changed(new, old).exit_code == 0, "a new check that passes"
    failing = make.output(gates=(*make.output().gates, Gate(name="exact", outcome="fail", value=1, limit=0)))
    assert "surface: exact" in worse(changed(old, make.stage(failing)))


def test_outputs_and_packages_that_are_gone_are_worse_and_new_ones_only_if_they_do_not_pass(make: SimpleNamespace) -> None:
    one, two = make.stage(make.output()), make.stage(make.output(), make.output("hidden"))
    assert worse(changed(two, one)) == {"hidden"}
    assert changed(one, two).exit_code == 0 and changed(one, two).changes[0].before == "new"
    assert "hidden" in worse(changed(one, make.stage(make.output(), make.failing())))
    small, large = make.bundle(one), make.bundle(one, make.stage(make.output(), name="other"))
    assert worse(changed(large, small)) == {"other"} and changed(small, large).exit_code == 0
    assert worse(changed(small, make.bundle(one, cascade=None))) == {"cascade"}


def test_every_part_of_a_bundle_is_compared(make: SimpleNamespace) -> None:
    old = make.bundle(make.stage(make.output()))
    assert old.cascade is not None
    tokens = TokenAgreement(sentences=1, tokens=9, equal=7, explained=(), unexplained=("'a b', token 4",))
    cascade = replace(old.cascade, outputs={"decoder.logits": make.output("decoder.logits", rho_rms=1.4)}, tokens=tokens)
    diff = changed(old, replace(old, cascade=cascade))
    assert {(change.part, change.what) for change in diff.worse} == {
        ("cascade", "decoder.logits: rho_rms"),
        ("cascade", "unexplained tokens"),
    }
    assert "8 of 9" in {change.before for change in diff.changes}


def test_other_circumstances_and_new_culprits_are_told_and_are_not_worse(make: SimpleNamespace) -> None:
    old = make.whole(culprits=(), constants=())
    samples = Samples(seeds=(0,), drawn=1, given=0)
    diff = changed(old, make.whole(digest="cd" * 32, numerics="fp32", budget="heuristic", samples=samples, versions={"torch": "2.14.0"}))
    assert diff.exit_code == 0
    told = {change.what: (change.before, change.after) for change in diff.changes}
    assert told["digest"] == ("abababababab", "cdcdcdcdcdcd") and told["budget"] == ("torch's own fp16", "heuristic")
    assert told["version of torch"] == ("2.13.0", "2.14.0")
    assert told["numerics"] == ("fp16", "fp32") and told["samples judged"] == ("16", "1")
    assert told["culprit op_1_linear"] == ("new", "loses 40 times a rounding by itself") and told["constant eps"] == ("new", "is 0 in fp16")


def test_a_bundle_and_a_package_are_not_compared(make: SimpleNamespace) -> None:
    with pytest.raises(InputError, match="give two of a kind"):
        changed(make.stage(make.output()), make.bundle(make.stage(make.output())))


def test_the_comparison_is_shown_in_words(make: SimpleNamespace, shown: Callable[..., str]) -> None:
    diff = changed(make.stage(make.output()), make.stage(make.output(rho_rms=1.4, relative_rms=8e-4), name="encoder"))
    text = shown(render_diff(diff))
    assert text.startswith("WORSE  pass -> pass; 1 thing got worse")
    row = next(line for line in text.splitlines() if line.startswith("encoder"))
    assert row.split() == ["encoder", "surface", "1.40", "1.02", "8.0e-04", "6.0e-04", "WORSE"]
    assert "worse: encoder: surface: rho_rms: 1.02 -> 1.40" in text
    same = shown(render_diff(changed(make.whole(), make.whole())))
    assert same.startswith("NO WORSE  fail -> fail; nothing got worse") and "not finite" in same
    hostile = shown(render_diff(changed(make.stage(name=make.HOSTILE), make.stage(make.output(make.HOSTILE), name=make.HOSTILE))))
    assert "[bold]" in hostile and "\x1b" not in hostile


def test_changes_for_the_worse_come_first(make: SimpleNamespace) -> None:
    old = make.stage(make.output(rho_rms=3.0), make.output("hidden"))
    diff = changed(old, make.stage(make.output(rho_rms=1.0), make.output("hidden", rho_rms=2.0), digest="cd" * 32))
    assert [change.direction for change in diff.changes] == ["worse", "changed", "better"]
    assert diff.to_json()["worse"] == 1 and diff.to_json()["changes"][0]["what"] == "hidden: rho_rms"


def test_an_accepted_difference_is_told_when_it_is_new_and_is_worse_when_it_grew(make: SimpleNamespace) -> None:
    def accepting(size: float) -> Any:
        return replace(make.whole(), accepted=(AcceptedDifference(op="norm", reason="rows are large", relative_rms=size),))

    (new,) = changed(make.whole(), accepting(1e-5)).changes
    assert (new.what, new.after, new.direction) == ("accepted at norm", "rows are large", "changed")
    assert worse(changed(accepting(1e-5), accepting(1.2e-5))) == {"accepted at norm"}
    assert not changed(accepting(1e-5), accepting(1.05e-5)).changes
